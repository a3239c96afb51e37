"""`vmkeep points`: the recovery points."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from vmkeep.cli.console import local_time, out, print_json, print_table
from vmkeep.cli.fleet_file import load
from vmkeep.errors import InputError, IntegrityError
from vmkeep.fleet.suggest import suggestion
from vmkeep.operations import repositories
from vmkeep.operations.holds import held_as
from vmkeep.operations.proofs import proven_by_drills
from vmkeep.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.operations.proofs import Proof
    from vmkeep.repository import Point, PointInfo, Repository


def points(path: Path, vm: str | None, place: str | None, *, as_json: bool) -> None:
    """List recovery points, oldest first.

    Args:
        place: the copy of the repository to look into.

    Raises:
        InputError: the VM is neither declared nor in the repository.
        IntegrityError: one is damaged; the others are listed all the same.
    """
    file = load(path, place)
    with repositories.open_repository(file) as repository:
        if vm is not None and vm not in file.fleet.vms and not repository.list_points(vm):
            raise InputError(
                f"there is no VM {vm!r} in fleet {file.fleet.fleet}{suggestion(vm, file.fleet.vms)}"
            )
        print_points(repository, vm, as_json=as_json)


def print_points(repository: Repository, vm: str | None, *, as_json: bool) -> None:
    """List the recovery points of all VMs, or of one.

    Raises:
        IntegrityError: one is damaged; the others are listed all the same.
    """
    damaged: list[tuple[PointInfo, IntegrityError]] = []
    found = repository.points(vm, damaged=lambda info, error: damaged.append((info, error)))
    held = held_as(repository)
    proven = proven_by_drills(repository)
    url = repository.store.url
    if as_json:
        print_json(
            [
                *(
                    {
                        **summary(point),
                        "held": held.get(point.session, []),
                        "proven": asdict(proven[point.session]) if point.session in proven else None,
                    }
                    for point in found
                ),
                *(_damage(*one) for one in damaged),
            ]
        )
    elif found or damaged:
        print_table(_table(found, damaged, held, proven))
    else:
        out().print(f"no recovery point{f' of {vm}' if vm else ''} in {url} yet", markup=False)
    if damaged:
        raise IntegrityError("\n".join(str(error) for _, error in damaged))


def summary(point: Point) -> dict[str, Any]:
    """Return what a listing says of a point, for programs; sizes in bytes, times in UTC."""
    return {
        "vm": point.vm,
        "session": point.session,
        "taken": point.taken,
        "run": point.run,
        "group": point.group,
        "consistency": point.consistency,
        "complete": point.complete,
        "components": list(point.components),
        "missing": dict(point.missing),
        "read": point.stats.read,
        "new": point.stats.new,
        "stored": point.stats.stored,
    }


def _damage(info: PointInfo, error: IntegrityError) -> dict[str, Any]:
    return {"vm": info.vm, "session": info.session, "damaged": str(error)}


def _table(
    found: list[Point],
    damaged: list[tuple[PointInfo, IntegrityError]],
    held: dict[str, list[str]],
    proven: dict[str, Proof],
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("VM", "SESSION", "TAKEN", "COMPONENTS"):
        table.add_column(name, no_wrap=name != "COMPONENTS", overflow="fold")
    for name in ("READ", "STORED"):
        table.add_column(name, no_wrap=True, justify="right")
    for name in ("CONSISTENCY", "RUN"):
        table.add_column(name, no_wrap=True)
    for point in found:
        cost = point.stats
        table.add_row(
            point.vm, point.session, local_time(point.taken),
            _components(point, held.get(point.session, []), proven.get(point.session)),
            format_size(cost.read),
            format_size(cost.stored), point.consistency, point.run,
        )  # fmt: skip
    for info, _ in damaged:
        table.add_row(info.vm, info.session, Text("DAMAGED", "bold red"))
    return table


def _components(point: Point, held: list[str], proof: Proof | None) -> Text:
    text = Text(", ".join(point.components))
    if point.missing:
        text.append("\nPARTIAL, lacks " if point.components else "PARTIAL, lacks ", "bold red")
        text.append(", ".join(point.missing), "red")
    if held:
        text.append(f"\nheld as {', '.join(held)}", "yellow")
    if proof is not None:
        text.append(f"\nproven: {proof.how} {local_time(proof.when)}", "green")
    return text
