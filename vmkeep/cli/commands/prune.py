"""Commands about what stays and what goes: `prune`, `hold`, `unhold`, `forget`."""

# ruff: noqa: PLC0415  (a command imports what it needs when it runs: see the package)

from datetime import datetime
from typing import Annotated

import typer

from vmkeep.cli import options
from vmkeep.cli.options import examples


def prune(  # noqa: PLR0913  (each is an option)
    fleet: options.Fleet = options.FLEET_FILE,
    dead_after: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="Take a backup or restore for dead that began longer ago and has not ended.",
        ),
    ] = "7d",
    repository: options.Repository = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    direct: options.Direct = False,
    json: options.Json = False,
) -> None:
    """Forget the recovery points that the fleet's retention does not keep, and free their space.

    Backups and restores may run at the same time. The newest complete point of a VM is never forgotten.
    """
    from vmkeep.cli import prune as pruning
    from vmkeep.cli.runs import Mode, carry_out

    request = pruning.request_of(fleet, repository, dead_after)
    if dry_run:
        pruning.show(fleet, repository, as_json=json)
    else:
        carry_out(request, Mode(direct=direct, as_json=json))


VM = Annotated[str, typer.Argument(help="The VM.", show_default=False)]
Point = Annotated[
    str, typer.Argument(help="The recovery point's session, or the beginning of it.", show_default=False)
]
HoldName = Annotated[str, typer.Option("--name", help="What the hold is called, such as a case's number.")]


def hold(  # noqa: PLR0913, PLR0917  (typer calls it, by name; each is an option)
    vm: VM,
    point: Point,
    name: HoldName,
    reason: Annotated[str, typer.Option("--reason", help="Why the recovery point must stay.")],
    until: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            formats=options.TIMES,
            help="The hold is over then; by default it lasts until it is released. Local time "
            "unless it has a zone.",
        ),
    ] = None,
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
    *,
    json: options.Json = False,
) -> None:
    """Hold a recovery point: neither retention nor anybody forgets it before the hold is released or over."""
    from vmkeep.cli.holds import hold as carry_out

    carry_out(fleet, repository, vm, point, name=name, reason=reason, until=until, as_json=json)


def unhold(  # noqa: PLR0913, PLR0917  (typer calls it, by name; each is an option)
    vm: VM,
    point: Point,
    name: HoldName,
    reason: Annotated[str, typer.Option("--reason", help="Why it need not stay any more.")] = "",
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
) -> None:
    """Release a hold. Retention then decides about the recovery point as about any other."""
    from vmkeep.cli.holds import unhold as carry_out

    carry_out(fleet, repository, vm, point, name=name, reason=reason)


def forget(
    vm: VM,
    point: Point,
    reason: Annotated[str, typer.Option("--reason", help="Why it goes; kept in the repository.")],
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
) -> None:
    """Forget one recovery point now; 'vmkeep prune' frees its space. The newest complete one always stays."""
    from vmkeep.cli.holds import forget as carry_out

    carry_out(fleet, repository, vm, point, reason=reason)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(
        epilog=examples(
            "vmkeep hold db1 20260101T01 --name case-7 --reason 'asked for by the auditors'",
            "vmkeep hold db1 20260101T01 --name audit --reason 'annual report' --until 2027-01-31",
        )
    )(hold)
    app.command(epilog=examples("vmkeep unhold db1 20260101T01 --name case-7"))(unhold)
    app.command(epilog=examples("vmkeep forget db1 20260101T01 --reason 'holds data that must be erased'"))(
        forget
    )
    app.command(epilog=examples("vmkeep prune --dry-run", "vmkeep prune", "vmkeep prune --dead-after 2d"))(
        prune
    )
