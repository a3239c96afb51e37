"""`vmkeep deploy`, `up` and `down`: what runs by itself, and the server it runs on."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from flows import settings
from vmkeep.cli.console import err, out, print_json, print_table
from vmkeep.cli.fleet_file import load

if TYPE_CHECKING:
    from pathlib import Path


def deploy(fleet: Path, pool: str | None, *, as_json: bool) -> None:
    """Bring the server's deployments in line with the fleet file.

    Raises:
        FleetError: the fleet file has problems.
        TemporaryError: the server is away.
    """
    file = load(fleet)
    if settings.require_server() is None:
        err().print(
            "no Prefect server runs: 'vmkeep up' starts one. What is deployed now lies in Prefect's own "
            "database, and nothing runs it until a server and a worker do.",
            style="yellow",
            markup=False,
        )
    from deployments import POOL, sync  # noqa: PLC0415  (Prefect reads its settings when it is imported)

    done = sync.deploy(file, pool=pool or POOL)
    if as_json:
        print_json([asdict(one) for one in done])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("DEPLOYMENT", "CHANGE", "SCHEDULE"):
        table.add_column(name)
    for one in done:
        table.add_row(one.name, one.change, one.schedule)
    print_table(table)


def up(port: int, *, as_json: bool) -> None:
    """Start a server and a worker in the background.

    Raises:
        TemporaryError: the port is in use, or the server does not start.
    """
    from deployments import local  # noqa: PLC0415  (as above)

    running = local.up(port=port)
    if as_json:
        print_json({**asdict(running), "ui": running.ui})
        return
    out().print(f"Prefect runs: {running.ui}  (log: {running.log})", markup=False)


def down() -> None:
    """Stop them."""
    from deployments import local  # noqa: PLC0415  (as above)

    out().print("Prefect was stopped" if local.down() else "Prefect was not running")
