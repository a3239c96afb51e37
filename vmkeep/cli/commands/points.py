"""Commands about what was saved: `points`, `show`."""

# ruff: noqa: PLC0415  (a command imports what it needs when it runs: see the package)

from typing import Annotated

import typer

from vmkeep.cli import options
from vmkeep.cli.options import examples


def points(
    vm: Annotated[str | None, typer.Argument(help="Only of this VM.", show_default=False)] = None,
    fleet: options.Fleet = options.FLEET_FILE,
    *,
    json: options.Json = False,
) -> None:
    """List the recovery points, oldest first."""
    from vmkeep.cli.points import points as carry_out

    carry_out(fleet, vm, as_json=json)


def show(
    vm: Annotated[str, typer.Argument(help="The VM.", show_default=False)],
    session: Annotated[
        str, typer.Argument(help="The recovery point's session, or the beginning of it.")
    ] = "latest",
    fleet: options.Fleet = options.FLEET_FILE,
    files: Annotated[
        str | None,
        typer.Option(metavar="COMPONENT", help="List the files of this component."),
    ] = None,
    *,
    json: options.Json = False,
) -> None:
    """Show all about one recovery point, or the files in it."""
    from vmkeep.cli import show as shown

    if files is None:
        shown.show(fleet, vm, session, as_json=json)
    else:
        shown.show_files(fleet, vm, session, files, as_json=json)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(epilog=examples("vmkeep points", "vmkeep points db1 --json"))(points)
    app.command(
        epilog=examples(
            "vmkeep show db1", "vmkeep show db1 20260101T01", "vmkeep show db1 --files filesystems.exports"
        )
    )(show)
