"""Hold recovery points, release them, and forget one by hand; the newest complete one is never forgotten."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkeep.errors import ConflictError, NotFoundError
from vmkeep.planning import retention

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmkeep.repository import Hold, Point, Repository


def held_as(repository: Repository, now: datetime | None = None) -> dict[str, list[str]]:
    """Return the names of the holds that are active, by the session whose point they hold."""
    found: dict[str, list[str]] = {}
    for hold in repository.holds():
        if hold.active(now or datetime.now(UTC)):
            found.setdefault(hold.session, []).append(hold.name)
    return found


def unhold(repository: Repository, point: Point, name: str, reason: str) -> Hold:
    """Release the hold of that name, and return it.

    Raises:
        NotFoundError: there is none.
    """
    there = repository.holds(point)
    for hold in there:
        if hold.name == name:
            repository.release(hold, reason)
            return hold
    names = ", ".join(repr(hold.name) for hold in there) or "nothing"
    raise NotFoundError(
        f"recovery point {point.session} of {point.vm} is not held as {name!r}: it has {names}"
    )


def forget(repository: Repository, point: Point, reason: str) -> None:
    """Forget one recovery point, whatever retention says; `prune` then frees its space.

    Raises:
        ConflictError: it is held, or there is no newer complete point that holds all that it holds.
    """
    candidates = [candidate(one) for one in repository.points(point.vm)]
    verdicts = retention.decide(candidates, retention.Policy())
    (why,) = [verdict.reasons for verdict in verdicts if verdict.point.session == point.session]
    if why:
        raise ConflictError(
            f"recovery point {point.session} of {point.vm} is not forgotten: it is the "
            f"{'newest complete one' if point.complete else 'best there is'} of {_list(point.components)}"
        )
    repository.forget(point, reason)


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
