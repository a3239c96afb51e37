"""The command about what is old: `prune`."""

# ruff: noqa: PLC0415  (a command imports what it needs when it runs: see the package)

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


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(epilog=examples("vmkeep prune --dry-run", "vmkeep prune", "vmkeep prune --dead-after 2d"))(
        prune
    )
