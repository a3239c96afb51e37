"""The step `verify`: what was stored is read back, and every chunk is checked."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from vmkeep.errors import AccessError, IntegrityError, NotFoundError
from vmkeep.operations.damage import told
from vmkeep.operations.report import StepReport
from vmkeep.units import MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.operations.run import Run
    from vmkeep.planning import Step
    from vmkeep.repository import Point

SAMPLE_OF_NEW: Final = 0.05
"""The share of a new recovery point that is read back at once."""

LEAST_OF_NEW: Final = 64 * MiB
"""But so many bytes at least, about: of a small one a share could be nothing."""

_SHOWN: Final = 5
"""How many damaged places a message names."""


def verify_new(run: Run, step: Step, progress: Callable[[int], None]) -> StepReport:
    """Read a sample of the recovery point that this run has sealed."""
    (name,) = step.vms
    point = next((one for one in run.repository.newest_first(name) if one.run == run.id), None)
    if point is None:
        run.repository.points(name)  # or it says which is damaged
        raise NotFoundError(f"VM {name}: the recovery point of run {run.id} is not in the repository")
    try:
        with run.repository.reading(point):
            return _verify(run, point, _share_of_new(point), progress)
    except AccessError as error:
        return _unread(run, point, error)


def _unread(run: Run, point: Point, error: AccessError) -> StepReport:
    """Check by a listing what credentials that may only write cannot read back (see `repository.roles`)."""
    faults = run.repository.check_objects()
    if faults:
        packs = ", ".join(fault.pack for fault in faults[:_SHOWN])
        raise IntegrityError(f"VM {point.vm}: {len(faults)} packs are missing or cut off, such as {packs}")
    return StepReport(
        f"{point.session}: all packs are there with their size; NOT read back, which these credentials may "
        "not: 'vmkeep verify' with a restorer's can",
        details=(str(error),),
    )


def _share_of_new(point: Point) -> float:
    size = 0
    for component in point.components.values():
        size += sum(disk.size for disk in component.disks.values())
        size += sum(stream.size for stream in component.streams.values())
    return max(SAMPLE_OF_NEW, min(1.0, LEAST_OF_NEW / max(1, size)))


def verify_chosen(run: Run, step: Step, progress: Callable[[int], None]) -> StepReport:
    """Read the chosen recovery point, or a share of it.

    Raises:
        IntegrityError: something of it is damaged.
    """
    if not step.vms:
        return _scrub(run, progress)
    (name,) = step.vms
    return _verify(run, run.point(name), run.request.share, progress)


def _scrub(run: Run, progress: Callable[[int], None]) -> StepReport:
    """Read a share of all packs, those first that were not read for the longest time."""
    report = run.repository.scrub(share=run.request.share, progress=progress)
    wrong = list(report.problems)
    if report.damages:
        wrong.append(told(run.repository, report.damages))
    if report.broken and not report.damages:
        names = ", ".join(name.hex() for name in report.broken[:_SHOWN])
        wrong.append(
            f"{len(report.broken)} pack(s) are damaged, and nothing is lost: it lies elsewhere, too, or no "
            f"kept recovery point needs it; 'vmkeep prune' removes them: {names}"
        )
    if wrong:
        raise IntegrityError("\n".join(wrong))
    oldest = f"; all were read since {report.oldest:%Y-%m-%d}" if report.oldest else "; some were never read"
    return StepReport(
        f"{report.packs} of {report.of} packs, {format_size(report.size)}, read back and right{oldest}",
        read=report.size,
    )


def _verify(run: Run, point: Point, share: float, progress: Callable[[int], None]) -> StepReport:
    report = run.repository.verify(
        point, share=share, seed=random.SystemRandom().getrandbits(32), progress=progress
    )
    if not report.sound:
        raise IntegrityError(f"VM {point.vm}: {told(run.repository, report.damages)}")
    return StepReport(
        f"{point.session}: {report.chunks} chunk(s), {format_size(report.size)} read back and right",
        read=report.size,
    )
