"""The command about what is old: `prune`."""

# ruff: noqa: PLC0415  (a command imports what it needs when it runs: see the package)

from typing import Annotated

import typer

from vmkeep.cli import options
from vmkeep.cli.options import examples


def prune(
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
    json: options.Json = False,
) -> None:
    """Forget the recovery points that the fleet's retention does not keep, and free their space.

    Backups and restores may run at the same time. The newest complete point of a VM is never forgotten.
    """
    from vmkeep.cli.prune import prune as carry_out

    carry_out(fleet, repository, dry_run=dry_run, dead_after=dead_after, as_json=json)


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(epilog=examples("vmkeep prune --dry-run", "vmkeep prune", "vmkeep prune --dead-after 2d"))(
        prune
    )
