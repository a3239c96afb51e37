"""From which repository a restore reads: the copy that has the newest state, and of these the nearest.

A copy may be behind, or away; so may the repository itself: a restore needs one of them.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from vmkeep.errors import NotFoundError, VmkeepError
from vmkeep.fleet import BEST, PRIMARY
from vmkeep.operations import repositories
from vmkeep.operations.choose import newest_readable, require_newest
from vmkeep.operations.prepare import selected
from vmkeep.repository.copy import origin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmkeep.fleet import FleetFile
    from vmkeep.fleet.model import Place
    from vmkeep.operations.choose import Damaged
    from vmkeep.operations.request import Request
    from vmkeep.repository import Point

    Chooser = Callable[[FleetFile, Request, list[Damaged]], Mapping[str, Point]]

_HERE, _NEAR, _FAR = range(3)
_LOCAL: Final = ("localhost", "host.docker.internal")


def chosen(
    file: FleetFile,
    request: Request,
    told: Callable[[str], None] = lambda _doubt: None,
    *,
    points: Chooser | None = None,
) -> Request:
    """Return *request* with the repository that it reads, if it is a restore and may choose.

    Args:
        told: of what could not be looked into when a copy is read instead: it may have had a newer state.
        points: tells which points would be restored from one place.

    Raises:
        VmkeepError: what the repository itself is lacking, when no copy can be used either.
        IntegrityError: a point is damaged somewhere that is newer than all that can be used.
    """
    names = [PRIMARY, *file.fleet.repository.copies]
    chooses = request.operation in {"restore", "drill"} and request.repository in {None, BEST}
    if not chooses or len(names) == 1:
        return request
    found: dict[str, Mapping[str, Point]] = {}
    damaged: list[Damaged] = []
    problems: dict[str, VmkeepError] = {}
    for name in names:
        try:
            found[name] = (points or _points)(file.at(name), request, damaged)
        except VmkeepError as error:
            problems[name] = error
    if not found:
        raise problems[PRIMARY]
    states = {name: _state(points) for name, points in found.items()}
    newest = max(states.values())
    best = min(
        (name for name, state in states.items() if state == newest),
        key=lambda name: distance(file.at(name).fleet.repository),
    )
    require_newest(found[best], damaged)
    for name, problem in problems.items() if PRIMARY in problems else ():
        if not (request.points and isinstance(problem, NotFoundError)):
            told(f"restored from copy {best}, which may be behind: {name} could not be used: {problem}")
    return request.model_copy(update={"repository": best})


def distance(place: Place) -> int:
    """Return how far a store is: 0 a folder, 1 a service here or in a private network, 2 any other."""
    if not place.store.lower().startswith("s3://"):
        return _HERE
    host = urlsplit((place.s3 and place.s3.endpoint_url) or "").hostname or ""
    if host in _LOCAL:
        return _NEAR
    try:
        return _NEAR if ipaddress.ip_address(host).is_private else _FAR
    except ValueError:
        return _FAR


def _points(file: FleetFile, request: Request, damaged: list[Damaged]) -> dict[str, Point]:
    """Return which points would be restored from one place; *damaged* gets those that cannot be read."""
    with repositories.open_repository(file) as repository:
        return newest_readable(file.fleet, selected(file, request), repository, request, damaged)


def _state(points: Mapping[str, Point]) -> tuple[str, ...]:
    """Return the sessions that first saved the points, in order of their VMs."""
    return tuple(origin(point) for _, point in sorted(points.items()))
