"""Which recovery points a restore uses: the newest that fit together.

A dependent must not be newer than what it depends on: an application may know rows that its database does
not have yet. Points of one run fit together, for its snapshots were taken in that order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx

from vmkeep import fleet as fleets
from vmkeep.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from vmkeep.fleet import Fleet, Selection
    from vmkeep.operations.request import Request
    from vmkeep.repository import Point, Repository


def choose_points(
    fleet: Fleet, selection: Selection, repository: Repository, request: Request
) -> dict[str, str]:
    """Return the session of the recovery point to restore, for each selected VM.

    Raises:
        NotFoundError: a VM has no point that holds what is selected, or none that fits the others.
        InputError: a point was named for a VM that is not restored.
    """
    strangers = set(request.points) - set(selection.vms)
    if strangers:
        raise InputError(f"--point names {', '.join(sorted(strangers))}, which is not restored")
    named = {vm: repository.point(vm, session) for vm, session in request.points.items()}
    candidates = {
        vm: [named[vm]]
        if vm in named
        else _usable(repository.points(vm), selection.components[vm], request.aware())
        for vm in selection.vms
    }
    return {vm: point.session for vm, point in newest_cut(fleet, candidates, frozenset(named)).items()}


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


def _usable(points: Sequence[Point], components: Sequence[str], at: datetime | None) -> list[Point]:
    limit = None if at is None else at.isoformat(timespec="milliseconds")
    return [
        point
        for point in points
        if set(components) <= set(point.components) and (limit is None or point.taken <= limit)
    ]
