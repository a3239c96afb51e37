"""Forget the recovery points that the fleet's retention does not keep, and free what only they need."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from vmkeep.planning import retention

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta, tzinfo

    from vmkeep.fleet import FleetFile
    from vmkeep.repository import Collected, Point, Repository, Unneeded


@dataclass(frozen=True, slots=True)
class Decided:
    """A recovery point, and why it is kept."""

    point: Point
    reasons: tuple[str, ...]
    """Empty: it is forgotten."""

    @property
    def kept(self) -> bool:
        """Whether it stays."""
        return bool(self.reasons)


def decide(file: FleetFile, repository: Repository) -> list[Decided]:
    """Return what retention says about each recovery point of the fleet, by VM, oldest first.

    Points of other fleets in the same repository are none of ours. Days begin where those of the backup's
    schedule do.

    Raises:
        IntegrityError: a point is damaged: without it, nobody knows what the others must make up for.
    """
    rules = file.fleet.repository.retention
    by_vm: dict[str, list[Point]] = {}
    for point in repository.points():
        if point.fleet == file.fleet.fleet:
            by_vm.setdefault(point.vm, []).append(point)
    if rules is None:
        return [Decided(point, ("no retention is declared",)) for vm in sorted(by_vm) for point in by_vm[vm]]
    policy = retention.Policy(**{name: count or 0 for name, count in rules.model_dump().items()})
    return [decided for vm in sorted(by_vm) for decided in _of_vm(by_vm[vm], policy, _zone(file))]


def freed_by(file: FleetFile, repository: Repository, decided: Sequence[Decided]) -> Unneeded:
    """Return what would be deleted and written anew; changes nothing."""
    gone = frozenset(one.point.session for one in decided if not one.kept)
    return repository.unneeded(without=gone, repack_below=file.fleet.repository.repack)


def prune(
    file: FleetFile, repository: Repository, decided: Sequence[Decided], *, dead_after: timedelta
) -> Collected:
    """Forget what is not kept, then collect.

    Args:
        dead_after: a session that is older and not decided is taken for dead.

    Raises:
        IntegrityError: stored data is damaged; what was forgotten stays so, and nothing is deleted.
        TemporaryError: the store is away; call again.
    """
    for one in decided:
        if not one.kept:
            repository.forget(one.point, "retention")
    return repository.collect(dead_after=dead_after, repack_below=file.fleet.repository.repack)


def _of_vm(points: Sequence[Point], policy: retention.Policy, zone: tzinfo) -> list[Decided]:
    by_session = {point.session: point for point in points}
    candidates = [
        retention.Candidate(
            point.session, _time(point.taken), frozenset(point.components), complete=point.complete
        )
        for point in points
    ]
    return [
        Decided(by_session[verdict.point.session], verdict.reasons)
        for verdict in retention.decide(candidates, policy, zone)
    ]


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _zone(file: FleetFile) -> tzinfo:
    backup = file.fleet.schedules.backup
    return UTC if backup is None else ZoneInfo(backup.timezone)
