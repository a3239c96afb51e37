"""The step `prune`: recovery points that retention does not keep are forgotten, and their space is freed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from vmkeep.operations.holds import candidate, held_as
from vmkeep.operations.report import StepReport
from vmkeep.planning import retention
from vmkeep.repository import Unneeded
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import tzinfo

    from vmkeep.fleet import FleetFile
    from vmkeep.fleet.model import Ages
    from vmkeep.operations.run import Run
    from vmkeep.planning import Step
    from vmkeep.repository import Collected, Point, Repository

_WORK: Final = {"reader": "reads", "writer": "saves", "repacker": "rewrites packs"}


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


def decide(file: FleetFile, repository: Repository, vm: str) -> list[Decided]:
    """Return what retention says about each recovery point of a VM, oldest first.

    Points of other fleets in the same repository are none of ours. Days begin where those of the backup's
    schedule do.

    Raises:
        IntegrityError: a point is damaged: without it, nobody knows what the others must make up for.
    """
    rules = file.fleet.repository.retention
    points = [point for point in repository.points(vm) if point.fleet == file.fleet.fleet]
    if rules is None:
        return [Decided(point, ("no retention is declared",)) for point in points]
    kinds = {str(kind): _policy(ages) for kind, ages in rules.kinds.items()}
    held = held_as(repository)
    return [
        Decided(one.point, (*one.reasons, *(f"held as {name!r}" for name in held.get(one.point.session, ()))))
        for one in _of_vm(points, _policy(rules), kinds, _zone(file))
    ]


def pruned_vms(file: FleetFile, repository: Repository) -> list[str]:
    """Return the VMs of which there are points of this fleet, also those that are not declared any more."""
    found = []
    for vm in sorted({info.vm for info in repository.list_points()}):
        newest = None if vm in file.fleet.vms else next(repository.newest_first(vm), None)
        if vm in file.fleet.vms or (newest is not None and newest.fleet == file.fleet.fleet):
            found.append(vm)
    return found


def freed_by(file: FleetFile, repository: Repository, decided: Sequence[Decided]) -> Unneeded:
    """Return what would be deleted and written anew; changes nothing."""
    gone = frozenset(one.point.session for one in decided if not one.kept)
    return repository.unneeded(without=gone, repack_below=file.fleet.repository.repack)


def prune(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Forget the recovery points of a VM that retention does not keep; then delete what nobody needs.

    Raises:
        IntegrityError: stored data is damaged: nothing is deleted then.
        TemporaryError: the store is away; another call carries on.
    """
    if not step.vms:
        return _free(run)
    (name,) = step.vms
    decided = decide(run.file, run.repository, name)
    for one in decided:
        if not one.kept:
            run.repository.forget(one.point, "retention")
    forgotten = sum(not one.kept for one in decided)
    return StepReport(
        f"{len(decided) - forgotten} recovery point(s) kept, {forgotten} forgotten",
        details=tuple(
            f"{one.point.session} {'kept: ' + ', '.join(one.reasons) if one.kept else 'forgotten'}"
            f"{'' if one.point.complete else ' (PARTIAL)'}"
            for one in decided
        ),
    )


def told(space: Unneeded) -> str:
    """Return how much space is freed, and what is written for it."""
    text = f"{format_size(space.size)}"
    if space.repacked:
        text += (
            f", of which {format_size(space.rewritten)} in {space.repacked} sparse pack(s) are written anew"
        )
    return text


def _free(run: Run) -> StepReport:
    # First: a collection stops where something is damaged, and that must not let locks run out.
    locks = run.repository.extend_locks()
    collected = run.repository.collect(
        dead_after=timedelta(seconds=run.request.dead_after), repack_below=run.file.fleet.repository.repack
    )
    done = collected.repacked
    return StepReport(
        f"freed {told(Unneeded(collected.size, done.packs, done.size))}"
        + (f"; {locks.extended} of {locks.looked} locks extended" if locks.looked else ""),
        freed=collected.size,
        stored=done.size,
        details=(*(f"NOT locked on: {why}" for why in locks.refused), *_left(collected)),
    )


def _left(collected: Collected) -> Iterator[str]:
    """Yield what is not done yet, and why."""
    for problem in collected.repacked.damaged:
        yield f"{problem}; 'vmkeep verify --packs' says what is concerned"
    if collected.locked:
        yield f"{collected.locked} object(s) are locked, or may not be deleted by these credentials: later"
    for visitor in collected.waits_for:
        yield (
            f"session {visitor.session} on {visitor.host} {_WORK[visitor.role]} {visitor.vm} since "
            f"{visitor.begun.isoformat(timespec='seconds')}: what it may need is deleted by a later prune"
        )


def _policy(ages: Ages) -> retention.Policy:
    return retention.Policy(
        **{name: count or 0 for name, count in ages.model_dump(exclude={"kinds"}).items()}
    )


def _of_vm(
    points: Sequence[Point], policy: retention.Policy, kinds: Mapping[str, retention.Policy], zone: tzinfo
) -> list[Decided]:
    by_session = {point.session: point for point in points}
    return [
        Decided(by_session[verdict.point.session], verdict.reasons)
        for verdict in retention.decide(map(candidate, points), policy, zone, kinds)
    ]


def _zone(file: FleetFile) -> tzinfo:
    backup = file.fleet.schedules.backup
    return UTC if backup is None else ZoneInfo(backup.timezone)
