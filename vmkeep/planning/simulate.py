"""A plan carried out on a virtual clock: when each step would begin and end."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.planning.execution import Execution, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmkeep.planning.plan import Plan
    from vmkeep.planning.step import Step


@dataclass(frozen=True, slots=True)
class Slot:
    """When a step runs, in seconds from the begin of the plan."""

    step: Step
    start: float
    finish: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """The predicted run of a plan."""

    slots: tuple[Slot, ...]
    """In the order of their start."""
    critical_path: tuple[Step, ...]
    lower_bound: float
    """Seconds of the critical path: with every limit lifted it would still take this long."""

    @property
    def makespan(self) -> float:
        """Seconds until all steps are over."""
        return max((slot.finish for slot in self.slots), default=0.0)


def simulate(
    plan: Plan, limits: Mapping[str, int], *, workers: int | None = None, finished: Iterable[str] = ()
) -> Schedule:
    """Return when each step would run if every estimate held.

    Args:
        workers: how many steps run at once at most; `None` means only *limits* count.
        finished: steps that are not repeated.
    """
    execution = Execution(plan, limits, finished)
    running: list[tuple[float, str]] = []
    slots: list[Slot] = []
    now = 0.0
    while not execution.over:
        free = None if workers is None else workers - len(running)
        for step in execution.ready(free):
            slots.append(Slot(step, now, now + step.estimate.seconds))
            heapq.heappush(running, (slots[-1].finish, step.id))
        now, name = heapq.heappop(running)
        execution.finish(name, Outcome.succeeded())
    return Schedule(tuple(slots), plan.critical_path(), plan.length())
