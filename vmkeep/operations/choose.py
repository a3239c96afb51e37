"""Which recovery points a restore uses: the newest that fit together.

A dependent must not be newer than what it depends on: an application may know rows that its database does
not have yet. Points of one run fit together, for its snapshots were taken in that order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import networkx as nx

from vmkeep import fleet as fleets
from vmkeep.errors import InputError, IntegrityError, NotFoundError
from vmkeep.repository.copy import origin
from vmkeep.repository.layout import time_of_session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmkeep.fleet import Fleet, Selection
    from vmkeep.operations.request import Request
    from vmkeep.repository import Point, PointInfo, Repository

Damaged: TypeAlias = "tuple[PointInfo, IntegrityError]"
"""A recovery point that cannot be read, and why."""


def choose_points(
    fleet: Fleet, selection: Selection, repository: Repository, request: Request
) -> dict[str, str]:
    """Return the session of the recovery point to restore, for each selected VM.

    Raises:
        NotFoundError: a VM has no point that holds what is selected, or none that fits the others.
        InputError: a point was named for a VM that is not restored.
        IntegrityError: a point that may be newer than the chosen one is damaged.
    """
    damaged: list[Damaged] = []
    chosen = newest_readable(fleet, selection, repository, request, damaged)
    require_newest(chosen, damaged)
    return {vm: point.session for vm, point in chosen.items()}


def newest_readable(
    fleet: Fleet, selection: Selection, repository: Repository, request: Request, damaged: list[Damaged]
) -> dict[str, Point]:
    """Return the points that would be restored of those that can be read.

    Args:
        damaged: gets those that cannot, and might have been chosen.

    Raises:
        NotFoundError, InputError: see `choose_points`.
        IntegrityError: there are none, and some are damaged.
    """
    strangers = set(request.points) - set(selection.vms)
    if strangers:
        raise InputError(f"--point names {', '.join(sorted(strangers))}, which is not restored")
    mine: list[Damaged] = []
    found = {}
    for vm in selection.vms:
        wanted = set(selection.components[vm])
        found[vm] = [
            point
            for point in candidates(vm, repository, request, mine)
            if vm in request.points or wanted <= set(point.components)
        ]
    damaged += mine
    try:
        return newest_cut(fleet, found, frozenset(request.points))
    except NotFoundError as error:
        if mine:
            raise IntegrityError(f"{error}; {mine[-1][1]}") from error
        raise


def candidates(vm: str, repository: Repository, request: Request, damaged: list[Damaged]) -> list[Point]:
    """Return the points of a VM that the request allows, oldest first: the one that it names, or all by `at`.

    Args:
        damaged: gets those that cannot be read, and would be allowed.
    """
    if vm in request.points:
        return [repository.point(vm, request.points[vm])]
    limit = request.aware()

    def note(info: PointInfo, error: IntegrityError) -> None:
        if limit is None or time_of_session(info.session) <= limit:
            damaged.append((info, error))

    points = repository.points(vm, damaged=note)
    text = None if limit is None else limit.isoformat(timespec="milliseconds")
    return [point for point in points if text is None or point.taken <= text]


def require_newest(chosen: Mapping[str, Point], damaged: Iterable[Damaged]) -> None:
    """Check that no point is damaged that might have been chosen: an older state is nobody's silent choice.

    Raises:
        IntegrityError: one is.
    """
    for info, error in damaged:
        point = chosen[info.vm]
        if time_of_session(info.session) > time_of_session(origin(point)):
            raise IntegrityError(
                f"VM {info.vm}: a recovery point is damaged that is newer than what can be read: {error}. "
                f"To use the newest before it, of {point.taken}, say --point {info.vm}={point.session}"
            )


def newest_cut(
    fleet: Fleet, candidates: Mapping[str, Sequence[Point]], named: frozenset[str] = frozenset()
) -> dict[str, Point]:
    """Return the newest candidates in which no VM is newer than what it depends on.

    Args:
        candidates: by VM, oldest first.
        named: VMs whose point was chosen by a person: it is not questioned.
    """
    chosen: dict[str, Point] = {}
    needed = fleets.dependencies_among(fleet, candidates)
    for vm in nx.lexicographical_topological_sort(fleets.graph(fleet)):
        if vm not in candidates:
            continue
        points = candidates[vm]
        if not points:
            raise NotFoundError(
                f"VM {vm} has no recovery point that holds all that is to be restored: 'vmkeep points {vm}' "
                f"lists what there is; name the components to restore, such as {vm}/os, to do with less"
            )
        fitting = [
            point
            for point in points
            if vm in named
            or all(point.run == chosen[one].run or point.taken <= chosen[one].taken for one in needed[vm])
        ]
        if not fitting:
            raise NotFoundError(
                f"VM {vm} has no recovery point that fits those of {', '.join(sorted(needed[vm]))}: all are "
                f"newer. Name one with --point {vm}=SESSION"
            )
        chosen[vm] = fitting[-1]
    return chosen
