"""The step `verify`: what was stored is read back, and every chunk is checked."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from vmkeep.errors import NotFoundError
from vmkeep.operations.report import StepReport
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.operations.run import Run
    from vmkeep.planning import Step
    from vmkeep.repository import Point

SAMPLE_OF_NEW: Final = 0.05
"""The share of a new recovery point that is read back at once."""


def verify_new(run: Run, step: Step, progress: Callable[[int], None]) -> StepReport:
    """Read a sample of the recovery point that this run has sealed."""
    (name,) = step.vms
    points = [point for point in run.repository.points(name) if point.run == run.id]
    if not points:
        raise NotFoundError(f"VM {name}: the recovery point of run {run.id} is not in the repository")
    return _verify(run, points[-1], SAMPLE_OF_NEW, progress)


def verify_chosen(run: Run, step: Step, progress: Callable[[int], None]) -> StepReport:
    """Read the chosen recovery point, or a share of it."""
    (name,) = step.vms
    return _verify(run, run.point(name), run.request.share, progress)


def _verify(run: Run, point: Point, share: float, progress: Callable[[int], None]) -> StepReport:
    report = run.repository.verify(
        point, share=share, seed=random.SystemRandom().getrandbits(32), progress=progress
    )
    return StepReport(
        f"{point.session}: {report.chunks} chunk(s), {format_size(report.size)} read back and right",
        read=report.size,
    )
