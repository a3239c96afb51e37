"""Hold recovery points, release them, and forget one by hand; the newest complete one is never forgotten."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkeep.errors import ConflictError, NotFoundError
from vmkeep.planning import retention

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmkeep.repository import Hold, Point, PointInfo, Repository


def held_as(repository: Repository, now: datetime | None = None) -> dict[str, list[str]]:
    """Return the names of the holds that are active, by the session whose point they hold."""
    found: dict[str, list[str]] = {}
    for hold in repository.holds():
        if hold.active(now or datetime.now(UTC)):
            found.setdefault(hold.session, []).append(hold.name)
    return found


def unhold(repository: Repository, point: Point, name: str, reason: str) -> Hold:
    """Release all holds of that name, also those that are over, and return the newest.

    Raises:
        NotFoundError: there is none.
    """
    there = repository.holds(point)
    named = [hold for hold in there if hold.name == name]
    for hold in named:  # two machines may have held it at once
        repository.release(hold, reason)
    if named:
        return named[-1]
    names = ", ".join(repr(hold.name) for hold in there) or "nothing"
    raise NotFoundError(
        f"recovery point {point.session} of {point.vm} is not held as {name!r}: it has {names}"
    )


def forget(repository: Repository, vm: str, session: str, reason: str) -> PointInfo:
    """Forget one recovery point, whatever retention says, and return it; `prune` then frees its space.

    One that is damaged may always go; but it keeps no other in its place.

    Args:
        session: its session, or the beginning of it.

    Raises:
        ConflictError: it is held, or there is no newer complete point that holds all that it holds.
        NotFoundError: there is none.
    """
    info = repository.find(vm, session)
    points = [*repository.newest_first(vm)]
    point = next((one for one in points if one.session == info.session), None)
    if point is not None:
        _require_newer(point, points)
    repository.forget(info, reason)
    return info


def _require_newer(point: Point, points: Iterable[Point]) -> None:
    verdicts = retention.decide(map(candidate, points), retention.Policy())
    (why,) = [verdict.reasons for verdict in verdicts if verdict.point.session == point.session]
    if why:
        raise ConflictError(
            f"recovery point {point.session} of {point.vm} is not forgotten: it is the "
            f"{'newest complete one' if point.complete else 'best there is'} of {_list(point.components)}"
        )


def candidate(point: Point) -> retention.Candidate:
    """Return what retention asks about a point."""
    time = datetime.fromisoformat(point.taken)
    return retention.Candidate(
        point.session,
        time if time.tzinfo is not None else time.replace(tzinfo=UTC),
        frozenset(point.components),
        complete=point.complete,
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
