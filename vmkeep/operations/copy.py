"""The step `copy`: a copy of the repository gets the recovery points that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.errors import IntegrityError
from vmkeep.operations import repositories
from vmkeep.operations.report import StepReport
from vmkeep.repository import Stats
from vmkeep.repository.copy import copy_point, missing
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.operations.run import Run
    from vmkeep.planning import Step

_RUN = "copy"
"""The same for ever: whatever run was interrupted, the next one goes on with its point."""


def copy(run: Run, step: Step, progress: Callable[[int], None]) -> StepReport:
    """Copy the VM's recovery points, oldest first; what differs from those that are there.

    Raises:
        IntegrityError: points are damaged in the repository; all others were copied.
        TemporaryError: a repository is away; what was copied stays.
    """
    (name,) = step.vms
    config = run.file.fleet.repository.copies[str(step.repository)]
    damaged: list[str] = []
    cost, done = Stats(), 0
    with repositories.open_repository(run.file.at(step.repository)) as target:
        points = missing(
            run.repository, target, name, last=config.last,
            damaged=lambda info, error: damaged.append(f"{info.session}: {error}"),
        )  # fmt: skip
        of = len(points) + len(damaged)
        spool = run.folder.parent.parent / "copies" / str(step.repository) / name
        for point in points:
            try:
                copied = copy_point(point, run.repository, target, run=_RUN, spool=spool, progress=progress)
            except IntegrityError as error:
                damaged.append(f"{point.session}: {error}")
                continue
            cost += copied.stats
            done += 1
    if damaged:
        raise IntegrityError(
            f"VM {name}: {len(damaged)} of {of} recovery point(s) could not be copied to "
            f"{step.repository}: {'; '.join(damaged)}"
        )
    text = f"{done} recovery point(s) copied, {format_size(cost.stored)} stored" if done else "nothing new"
    return StepReport(text, read=cost.read, new=cost.new, stored=cost.stored)
