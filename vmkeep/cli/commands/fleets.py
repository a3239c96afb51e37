"""Commands about the fleet file: `init`, `validate`, `schema`, `plan`, `graph`."""

# ruff: noqa: PLC0415  (a command imports what it needs when it runs: see the package)

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vmkeep.cli import options
from vmkeep.cli.options import examples


class Operation(StrEnum):
    """What can be planned."""

    CONFIGURE = "configure"
    BACKUP = "backup"
    RESTORE = "restore"
    DRILL = "drill"
    VERIFY = "verify"
    COPY = "copy"


class Format(StrEnum):
    """How a graph is drawn."""

    SVG = "svg"
    MERMAID = "mermaid"
    DOT = "dot"


def init(fleet: options.Fleet = options.FLEET_FILE, *, json: options.Json = False) -> None:
    """Write a fleet file to start from; once there is one, make its key and its repository.

    Call it again at any time: it says what is there already, and changes nothing of it.
    """
    from vmkeep.cli.init import init as carry_out

    carry_out(fleet, as_json=json)


def validate(fleet: options.Fleet = options.FLEET_FILE, *, json: options.Json = False) -> None:
    """Check the fleet file, and say what of it this version cannot do yet."""
    from vmkeep.cli.validate import validate as carry_out

    carry_out(fleet, as_json=json)


def schema() -> None:
    """Print the JSON Schema of fleet files, for editors."""
    from vmkeep.cli.console import print_json
    from vmkeep.fleet import json_schema

    print_json(json_schema())


def plan(  # noqa: PLR0913  (each is an option)
    operation: Annotated[Operation, typer.Argument(help="What would be done.")] = Operation.BACKUP,
    targets: options.Targets = None,
    fleet: options.Fleet = options.FLEET_FILE,
    kind: options.Kinds = None,
    hypervisor: options.Hypervisors = None,
    *,
    instant: Annotated[bool, typer.Option("--instant", help="Of a restore: an instant one.")] = False,
    json: options.Json = False,
) -> None:
    """Show what would run: steps in waves, the critical path, how long, how much. Changes nothing."""
    from vmkeep.cli.plan import plan as carry_out
    from vmkeep.operations.request import Request

    request = Request(
        operation=operation.value,
        fleet=fleet,
        targets=tuple(targets or ()),
        kinds=tuple(kind or ()),
        hypervisors=tuple(hypervisor or ()),
        instant=instant and operation is Operation.RESTORE,
    )
    carry_out(request, as_json=json)


def graph(
    fleet: options.Fleet = options.FLEET_FILE,
    plan: Annotated[
        Operation | None, typer.Option(help="Draw the steps of this operation instead of the VMs.")
    ] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="By default what the file's name says, or svg.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead of printing.")
    ] = None,
) -> None:
    """Draw the fleet, or a plan, as a picture or as text for Mermaid and Graphviz."""
    from vmkeep.cli.graph import graph as carry_out

    carry_out(fleet, operation=plan and plan.value, form=form and form.value, output=output)


def import_vms(  # noqa: PLR0913  (a command has as many as it has options)
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[VM]...", show_default=False, help="All by default.")
    ] = None,
    fleet: options.Fleet = options.FLEET_FILE,
    hypervisor: Annotated[
        str | None, typer.Option(metavar="NAME", help="Look only at this one of the fleet file.")
    ] = None,
    uri: Annotated[
        str | None, typer.Option(metavar="URI", help="Make the fleet file, from the VMs of this libvirt.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Make the fleet file, from folders of disk images.")
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be written.")] = False,
    json: options.Json = False,
) -> None:
    """Write VMs that exist into the fleet file, as they are; the VMs are not touched.

    Comments and order of the file stay. VMs that it declares already are left as they are in it.
    """
    from vmkeep.cli.importing import Where
    from vmkeep.cli.importing import import_vms as carry_out

    carry_out(fleet, names or (), Where(hypervisor, uri, images), dry_run=dry_run, as_json=json)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(epilog=examples("vmkeep init", "vmkeep init -f shop.yaml"))(init)
    app.command(epilog=examples("vmkeep validate", "vmkeep validate -f shop.yaml --json"))(validate)
    app.command(
        "import",
        epilog=examples(
            "vmkeep import -f shop.yaml --uri qemu:///system",
            "vmkeep import db1 app1",
            "vmkeep import --hypervisor rack1 --dry-run",
        ),
    )(import_vms)
    app.command(epilog=examples("vmkeep schema > fleet.schema.json"))(schema)
    app.command(
        epilog=examples(
            "vmkeep plan", "vmkeep plan restore app1", "vmkeep plan backup 'web*' --kind databases --json"
        )
    )(plan)
    app.command(
        epilog=examples(
            "vmkeep graph -o fleet.svg",
            "vmkeep graph --plan restore --format mermaid",
            "vmkeep graph --format dot | dot -Tpng -o fleet.png",
        )
    )(graph)
