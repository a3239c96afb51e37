"""`vmkeep stream`: what streams in behind instantly restored VMs, and going on with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from vmkeep.cli.console import err, out, print_json, print_table, warn
from vmkeep.operations import instant, serving
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.fleet import FleetFile
    from vmkeep.operations.serving import Serving


def show(file: FleetFile, *, as_json: bool) -> None:
    """Print what has not streamed in yet, VM by VM."""
    found = [(one, instant.state_of(one)) for one in _readable(file)]
    if as_json:
        print_json(
            [
                {
                    "vm": one.target, "hypervisor": one.hypervisor, "point": one.session,
                    "server": state.server, "streaming": state.streaming, "disks": list(state.disks),
                    "problem": state.problem,
                }
                for one, state in found
            ]
        )  # fmt: skip
        return
    if not found:
        out().print("all restored VMs have all of their data", markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("VM", "recovery point", "not in yet", "state"):
        table.add_column(title)
    for one, state in found:
        table.add_row(
            one.target, f"{one.vm} {one.session}", ", ".join(state.disks) or "nothing", state.sentence
        )
    print_table(table)


def _readable(file: FleetFile) -> Iterator[Serving]:
    return serving.all_of(file, unreadable=lambda error: warn(str(error)))


def follow(file: FleetFile, vm: str, *, bandwidth: int, start: bool, as_json: bool) -> None:
    """Let the data of a VM stream in until all is there."""
    what = instant.find(file, vm)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
        TransferSpeedColumn(), console=err(), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(f"stream {vm}", total=instant.size_of(what) or None)
        if start:
            instant.power_on(what)
        done = instant.follow(what, bandwidth=bandwidth, progress=lambda size: bar.advance(task, size))
    if as_json:
        print_json({"vm": vm, "size": done})
    else:
        out().print(f"{vm} has all of its data: {format_size(done)} streamed in", markup=False)
