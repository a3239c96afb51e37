r"""A plan being carried out: what may run now, and what becomes of the rest.

No clock, no threads, no I/O. The caller asks for steps, runs them as it likes, and tells their outcomes:

    waiting --ready()--> running --finish()--> succeeded, failed
       \--- something it needs failed, or cancel() ---> skipped

Not safe to use from several threads at once; engines call it from one.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from vmkeep.errors import VmkeepError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmkeep.planning.plan import Plan
    from vmkeep.planning.step import Step

_NAMED: Final = 3


class State(StrEnum):
    """What became of a step."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step, and why, where it did not succeed."""

    state: State
    reason: str = ""

    @classmethod
    def succeeded(cls) -> Outcome:
        """Return the outcome of a step that did its work."""
        return cls(State.SUCCEEDED)

    @classmethod
    def failed(cls, reason: str) -> Outcome:
        """Return the outcome of a step that did not."""
        return cls(State.FAILED, reason)


@dataclass(frozen=True, slots=True)
class Summary:
    """How an execution went so far."""

    total: int
    succeeded: int
    failed: int
    skipped: int
    sentence: str
    """For people, such as `1 of 14 steps failed, 5 skipped: backup db1/os: disk is gone`."""

    @property
    def complete(self) -> bool:
        """Whether every step succeeded."""
        return self.succeeded == self.total


class Execution:
    """Walks a plan.

    Args:
        limits: how many running steps may hold each resource; one that is not named is not scarce.
        finished: steps that succeeded in an earlier run and are not repeated; one counts only if all
            that it waits for is finished too (see `vmkeep.planning.resume`).

    Raises:
        VmkeepError: a limit lets nothing through, or *finished* names a step that the plan does not have.
    """

    def __init__(self, plan: Plan, limits: Mapping[str, int], finished: Iterable[str] = ()) -> None:
        self._plan = plan
        self._limits = dict(limits)
        self._used: Counter[str] = Counter()
        self._running: set[str] = set()
        self._outcomes: dict[str, Outcome] = {}
        self._doomed: dict[str, Outcome] = {}
        """Steps that will be skipped as soon as all before them is over, with the cause."""
        self._cancelled: str | None = None
        urgency = plan.remaining()
        self._rank = {
            name: rank
            for rank, name in enumerate(sorted(plan.steps, key=lambda name: (-urgency[name], name)))
        }
        self._waits = {name: plan.graph.in_degree(name) for name in plan.steps}
        self._queue: list[tuple[int, str]] = []
        self._parked: dict[str, list[tuple[int, str]]] = {}
        """Steps that are ready but for a token, by that token."""
        self._begin(frozenset(finished))

    def _begin(self, finished: frozenset[str]) -> None:
        if closed := [token for token, limit in self._limits.items() if limit < 1]:
            raise VmkeepError(f"limit {closed[0]} is {self._limits[closed[0]]}: nothing could ever run")
        if unknown := sorted(finished - set(self._plan.steps)):
            raise VmkeepError(f"step {unknown[0]!r} is said to be finished, but is not in the plan")
        for step in self._plan.order():
            if step.id in finished and self._waits[step.id] == 0:
                self._conclude(step.id, Outcome.succeeded())
        self._queue = sorted(
            (rank, name)
            for name, rank in self._rank.items()
            if self._waits[name] == 0 and name not in self._outcomes
        )

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """The outcomes of all steps that are over, in the order in which they ended."""
        return self._outcomes

    @property
    def running(self) -> frozenset[str]:
        """The steps that were given out and have no outcome yet."""
        return frozenset(self._running)

    @property
    def over(self) -> bool:
        """Whether every step has an outcome."""
        return len(self._outcomes) == len(self._plan.steps)

    def ready(self, most: int | None = None) -> list[Step]:
        """Give out the steps that can run now, the longest way to the end first; they count as running.

        Args:
            most: how many at most, such as the free workers of a pool.
        """
        given: list[Step] = []
        while self._queue and (most is None or len(given) < most):
            rank, name = heapq.heappop(self._queue)
            step = self._plan.steps[name]
            if name in self._outcomes:  # skipped by cancel() while it was here
                self._wake(step.resources)
                continue
            short = next((token for token in step.resources if not self._free(token)), None)
            if short is not None:
                heapq.heappush(self._parked.setdefault(short, []), (rank, name))
                self._wake(step.resources)  # it may have been woken for a token that it leaves free
                continue
            self._used.update(step.resources)
            self._running.add(name)
            given.append(step)
            self._wake(step.resources)
        return given

    def finish(self, step_id: str, outcome: Outcome) -> None:
        """Take the outcome of a running step; skip what needs it, if it did not succeed.

        Raises:
            VmkeepError: the step is not running.
        """
        if step_id not in self._running:
            raise VmkeepError(f"step {step_id!r} has an outcome, but is not running")
        self._running.remove(step_id)
        resources = self._plan.steps[step_id].resources
        self._used.subtract(resources)
        self._wake(resources)
        self._conclude(step_id, outcome)

    def cancel(self, reason: str) -> None:
        """Skip every step that is not running yet, but for the `always` steps, which still come."""
        if self._cancelled is not None:
            return
        self._cancelled = reason
        skipped = Outcome(State.SKIPPED, f"cancelled: {reason}")
        waiting = [
            name
            for name, step in self._plan.steps.items()
            if not step.always and name not in self._outcomes and name not in self._running
        ]
        for name in waiting:
            self._doomed.setdefault(name, skipped)
        for name in [name for name in waiting if self._waits[name] == 0]:
            self._conclude(name, self._doomed[name])

    def summary(self) -> Summary:
        """Count the outcomes and tell them in a sentence."""
        counts = Counter(outcome.state for outcome in self._outcomes.values())
        return Summary(
            total=len(self._plan.steps),
            succeeded=counts[State.SUCCEEDED],
            failed=counts[State.FAILED],
            skipped=counts[State.SKIPPED],
            sentence=self._sentence(counts),
        )

    def _sentence(self, counts: Counter[State]) -> str:
        total, failed, skipped = len(self._plan.steps), counts[State.FAILED], counts[State.SKIPPED]
        if counts[State.SUCCEEDED] == total:
            return f"{total} of {total} steps succeeded"
        parts = [
            f"{failed} of {total} steps failed"
            if failed
            else f"{counts[State.SUCCEEDED]} of {total} steps succeeded"
        ]
        parts += [f"{skipped} skipped"] if skipped else []
        open_ = total - len(self._outcomes)
        parts += [f"{open_} not over"] if open_ else []
        causes = [
            f"{name}: {one.reason}" for name, one in self._outcomes.items() if one.state is State.FAILED
        ]
        if self._cancelled is not None:
            causes.insert(0, f"cancelled: {self._cancelled}")
        told = "; ".join(causes[:_NAMED]) + (
            f"; and {len(causes) - _NAMED} more" if len(causes) > _NAMED else ""
        )
        return ", ".join(parts) + (f": {told}" if told else "")

    def _free(self, token: str) -> bool:
        limit = self._limits.get(token)
        return limit is None or self._used[token] < limit

    def _enqueue(self, name: str) -> None:
        heapq.heappush(self._queue, (self._rank[name], name))

    def _wake(self, tokens: Iterable[str]) -> None:
        """Let the most urgent step that waits for each free token of *tokens* try again."""
        for token in tokens:
            parked = self._parked.get(token)
            if parked and self._free(token):
                heapq.heappush(self._queue, heapq.heappop(parked))

    def _conclude(self, name: str, outcome: Outcome) -> None:
        """Record the outcome of a step, and of all that is skipped by it and waits for nothing else."""
        todo = [(name, outcome)]
        while todo:
            current, result = todo.pop()
            self._outcomes[current] = result
            for successor in sorted(self._plan.graph.successors(current)):
                self._waits[successor] -= 1
                if result.state is not State.SUCCEEDED:
                    self._doom(current, successor)
                if self._waits[successor] == 0 and successor not in self._outcomes:
                    if successor in self._doomed:
                        todo.append((successor, self._doomed[successor]))
                    else:
                        self._enqueue(successor)

    def _doom(self, current: str, successor: str) -> None:
        """Note that *successor* will be skipped once all before it is over, if it needs *current*."""
        required = self._plan.graph.edges[current, successor]["required"]
        if not required or self._plan.steps[successor].always:
            return
        if current in self._doomed:
            self._doomed.setdefault(successor, self._doomed[current])
        else:
            self._doomed.setdefault(successor, Outcome(State.SKIPPED, f"needs {current}, which failed"))
