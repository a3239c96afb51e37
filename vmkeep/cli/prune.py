"""`vmkeep prune`: what would be kept and why, forgotten and freed; and the request to do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from vmkeep.cli.console import local_time, out, print_json, print_table
from vmkeep.cli.fleet_file import load
from vmkeep.errors import InputError
from vmkeep.operations import prune as operation
from vmkeep.operations import repositories
from vmkeep.operations.request import Request
from vmkeep.units import parse_duration

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.operations.prune import Decided
    from vmkeep.repository import Unneeded


def request_of(path: Path, place: str | None, dead_after: str) -> Request:
    """Return the request to prune.

    Args:
        place: the copy of the repository to prune.
        dead_after: a duration, such as `7d`.

    Raises:
        InputError: the duration is none.
    """
    try:
        seconds = parse_duration(dead_after)
    except ValueError as error:
        raise InputError(f"--dead-after: {error}") from error
    return Request(operation="prune", fleet=path, repository=place, dead_after=seconds)


def show(path: Path, place: str | None, *, as_json: bool) -> None:
    """Print what would be done; change nothing."""
    file = load(path, place)
    with repositories.open_repository(file) as repository:
        decided = [
            one
            for vm in operation.pruned_vms(file, repository)
            for one in operation.decide(file, repository, vm)
        ]
        space = operation.freed_by(file, repository, decided)
    if as_json:
        print_json(_as_json(decided, space))
        return
    if decided:
        print_table(_table(decided))
    forgotten = sum(not one.kept for one in decided)
    out().print(
        f"{len(decided) - forgotten} recovery point(s) would be kept, {forgotten} would be forgotten; "
        f"would free {operation.told(space)}",
        markup=False,
    )


def _as_json(decided: list[Decided], space: Unneeded) -> dict[str, Any]:
    return {
        "points": [
            {
                "vm": one.point.vm,
                "session": one.point.session,
                "taken": one.point.taken,
                "complete": one.point.complete,
                "kept": one.kept,
                "reasons": list(one.reasons),
            }
            for one in decided
        ],
        "freed": space.size,
        "repacked": space.repacked,
        "rewritten": space.rewritten,
    }


def _table(decided: list[Decided]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("VM", "SESSION", "TAKEN", "KEPT"):
        table.add_column(name, no_wrap=name != "KEPT", overflow="fold")
    for one in decided:
        point = one.point
        why = Text(", ".join(one.reasons)) if one.kept else Text("forgotten", "red")
        if not point.complete:
            why.append(" (PARTIAL)", "bold red")
        table.add_row(point.vm, point.session, local_time(point.taken), why)
    return table
