"""`vmkeep prune`: what is kept and why, what is forgotten, and how much space that frees."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from vmkeep.cli.console import local_time, out, print_json, print_table, warn
from vmkeep.cli.fleet_file import load
from vmkeep.errors import InputError
from vmkeep.operations import prune as operation
from vmkeep.operations import repositories
from vmkeep.repository import Unneeded
from vmkeep.units import format_size, parse_duration

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.operations.prune import Decided
    from vmkeep.repository import Collected


_WORK: Final = {"reader": "reads", "writer": "saves", "repacker": "rewrites packs"}


def prune(path: Path, place: str | None, *, dry_run: bool, dead_after: str, as_json: bool) -> None:
    """Apply the fleet's retention, and collect.

    Args:
        place: the copy of the repository to prune.
        dry_run: only show what would be done.
        dead_after: a duration, such as `7d`.

    Raises:
        InputError: the duration is none.
    """
    patience = _duration(dead_after)
    file = load(path, place)
    with repositories.open_repository(file) as repository:
        decided = operation.decide(file, repository)
        if dry_run:
            space = operation.freed_by(file, repository, decided)
            collected = None
        else:
            collected = operation.prune(file, repository, decided, dead_after=patience)
            rewritten = collected.repacked
            space = Unneeded(collected.size, rewritten.packs, rewritten.size)
    if as_json:
        print_json(_as_json(decided, space, collected))
        return
    if decided:
        print_table(_table(decided))
    forgotten = sum(not one.kept for one in decided)
    would, verb = ("would be ", "would free") if dry_run else ("", "freed")
    out().print(
        f"{len(decided) - forgotten} recovery point(s) {would}kept, {forgotten} {would}forgotten; "
        f"{verb} {format_size(space.size)}{_rewritten(space)}",
        markup=False,
    )
    if collected is not None:
        _tell_what_is_left(collected)


def _rewritten(space: Unneeded) -> str:
    if not space.repacked:
        return ""
    return f", of which {format_size(space.rewritten)} in {space.repacked} sparse pack(s) are written anew"


def _tell_what_is_left(collected: Collected) -> None:
    for problem in collected.repacked.damaged:
        warn(f"{problem}; 'vmkeep verify --packs' says what is concerned")
    if collected.locked:
        warn(f"{collected.locked} object(s) are locked, or may not be deleted by these credentials: later")
    for visitor in collected.waits_for:
        what = f"{_WORK[visitor.role]} {visitor.vm}".rstrip()
        warn(
            f"session {visitor.session} on {visitor.host} {what} since "
            f"{local_time(visitor.begun.isoformat())}: what it may need is deleted by a later 'vmkeep prune'"
        )


def _as_json(decided: list[Decided], space: Unneeded, collected: Collected | None) -> dict[str, Any]:
    return {
        "dry_run": collected is None,
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
        "damaged": list(collected.repacked.damaged) if collected else [],
        "locked": collected.locked if collected else 0,
        "waits_for": [
            {"session": each.session, "role": each.role, "vm": each.vm, "host": each.host,
             "begun": each.begun.isoformat()}
            for each in (collected.waits_for if collected else ())
        ],
    }  # fmt: skip


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


def _duration(text: str) -> timedelta:
    try:
        return timedelta(seconds=parse_duration(text))
    except ValueError as error:
        raise InputError(f"--dead-after: {error}") from error
