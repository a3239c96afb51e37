"""Options and arguments that several commands share."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

FLEET_FILE = Path("fleet.yaml")
TIMES = [
    "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S%z",
]  # fmt: skip
"""How a time may be typed."""

Fleet = Annotated[
    Path,
    typer.Option("--fleet", "-f", envvar="VMKEEP_FLEET", show_default="fleet.yaml", help="The fleet file."),
]
Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TARGET]...",
        show_default=False,
        help="What: db1, db1/databases, db1/databases.orders, 'web*'. All by default.",
    ),
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        "-k",
        metavar="KIND",
        help="Only components of this kind (os, filesystems, databases, applications) or name. Repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on the standard output.")]
Direct = Annotated[
    bool, typer.Option("--direct", help="Without Prefect: the same steps, carried out by this process.")
]
Resume = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="Continue a run that failed or was interrupted; see its last line."),
]
Points = Annotated[
    list[str] | None,
    typer.Option(
        "--point", metavar="VM=SESSION", help="Use this recovery point of a VM. Its beginning is enough."
    ),
]
Hypervisors = Annotated[
    list[str] | None,
    typer.Option(
        "--hypervisor",
        metavar="NAME",
        help="Restore to this hypervisor of the fleet file. Repeatable: VMs are spread over them by room.",
    ),
]
Repository = Annotated[
    str | None,
    typer.Option(
        "--repository",
        metavar="NAME",
        help="Use this copy of repository.copies, or 'primary', the repository itself.",
    ),
]
Bandwidth = Annotated[
    str | None,
    typer.Option(metavar="RATE", help="Of what streams in, for each disk, such as 50MiB/s."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A key file (see 'vmkeep key new'), or a passphrase in one."),
]
PassphraseVariable = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The environment variable that holds the passphrase, or a key's text."),
]

KmsKey = Annotated[
    str | None,
    typer.Option("--kms", metavar="KEY", help="A key of AWS KMS: its ARN, or alias/NAME."),
]


def _print_version(wanted: bool) -> None:  # noqa: FBT001  (as typer calls it)
    if wanted:
        typer.echo(f"vmkeep {metadata.version('vmkeep')}")
        raise typer.Exit


def examples(*lines: str) -> str:
    """Return an epilog of example commands, one a line; after an empty line comes plain text."""
    commands, _, text = "\n".join(lines).partition("\n\n")
    shown = [f"  [bold]{line.replace('[', chr(92) + '[')}[/bold]" for line in commands.split("\n")]
    return "\n\n".join(["Examples:", *shown, *([text] if text else [])])


def version(
    *,
    _show: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version."),
    ] = False,
) -> None:
    """Take the options that stand before a command."""
