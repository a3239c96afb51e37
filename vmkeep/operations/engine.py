"""Walks a plan: the loop that both engines share. How a step is carried out is the worker's business."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from vmkeep.operations.interrupts import deferred
from vmkeep.operations.report import RunReport
from vmkeep.planning import Execution, Outcome, State, limits_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmkeep.operations.interrupts import Interrupts
    from vmkeep.operations.report import StepReport
    from vmkeep.operations.run import Run
    from vmkeep.planning import Step

Ended = "tuple[str, StepReport | BaseException]"


class Worker(Protocol):
    """Carries out steps at the same time."""

    def submit(self, step: Step) -> None:
        """Start a step; it must not block."""

    def wait(self) -> tuple[str, StepReport | BaseException] | None:
        """Return a step that ended, and what it did or why it failed; blocks until one has.

        Returns:
            `None` after `wake`.
        """

    def wake(self) -> None:
        """Let `wait` return; called by a signal handler, so it must not block nor take a lock."""


class Observer(Protocol):
    """Is told what happens, to show it. Called from any thread."""

    def begun(self, run: Run, finished: frozenset[str]) -> None:
        """A run begins; the steps in *finished* are done already."""

    def started(self, step: Step) -> None:
        """A step begins."""

    def advanced(self, step_id: str, size: int) -> None:
        """A step has done *size* more bytes."""

    def ended(self, step: Step, outcome: Outcome, report: StepReport | None) -> None:
        """A step is over."""

    def interrupted(self) -> None:
        """A signal came: what runs is ended properly, nothing else begins."""


class Silent:
    """Shows nothing."""

    def begun(self, run: Run, finished: frozenset[str]) -> None:
        """Do nothing."""

    def started(self, step: Step) -> None:
        """Do nothing."""

    def advanced(self, step_id: str, size: int) -> None:
        """Do nothing."""

    def ended(self, step: Step, outcome: Outcome, report: StepReport | None) -> None:
        """Do nothing."""

    def interrupted(self) -> None:
        """Do nothing."""


class _Walk:
    """One walk through a plan."""

    def __init__(self, run: Run, worker: Worker, observer: Observer) -> None:
        self.run, self.worker, self.observer = run, worker, observer
        self.finished = run.done_before()
        self.execution = Execution(run.plan, limits_of(run.file.fleet), self.finished)
        self.reports: dict[str, StepReport] = {}
        self.errors: dict[str, BaseException] = {}
        self.begun: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.told: set[str] = set()
        self.cancelled = False

    def go_on(self, width: int, interrupts: Interrupts) -> None:
        """Walk until every step is over."""
        while not self.execution.over:
            if interrupts.heard is not None and not self.cancelled:
                self.cancel(interrupts.heard.name)
                self.observer.interrupted()
            for step in self.execution.ready(width - len(self.execution.running)):
                self.begun[step.id] = time.monotonic()
                self.observer.started(step)
                self.worker.submit(step)
            ended = self.worker.wait()
            if ended is not None:
                self._note(*ended)

    def cancel(self, why: str) -> None:
        """Begin nothing any more but the `always` steps."""
        self.cancelled = True
        self.run.cancelled.set()
        self.execution.cancel(f"the run was interrupted ({why})")

    def _note(self, step_id: str, result: StepReport | BaseException) -> None:
        self.ended[step_id] = time.monotonic()
        self.seconds[step_id] = self.ended[step_id] - self.begun[step_id]
        if isinstance(result, BaseException):
            outcome = Outcome.failed(str(result) or type(result).__name__)
            self.errors[step_id] = result
        else:
            outcome = Outcome.succeeded()
            self.reports[step_id] = result
        self.run.remember(step_id, outcome)
        self.execution.finish(step_id, outcome)
        self.observer.ended(self.run.plan.steps[step_id], outcome, self.reports.get(step_id))
        self._note_skipped()

    def _note_skipped(self) -> None:
        for step_id, outcome in self.execution.outcomes.items():
            if outcome.state is State.SKIPPED and step_id not in self.told:
                self.told.add(step_id)
                self.run.remember(step_id, outcome)
                self.observer.ended(self.run.plan.steps[step_id], outcome, None)


def walk(run: Run, worker: Worker, *, width: int = 8, observer: Observer | None = None) -> RunReport:
    """Carry out the plan of *run*; what an earlier process of it did is not repeated.

    When it is interrupted, no new step begins, those that run end, and the `always` steps are still carried
    out: nothing stays frozen, no snapshot is left behind, and what was saved is sealed as partial.

    Args:
        width: how many steps run at the same time, at most.
    """
    began = time.monotonic()
    watching = observer or Silent()
    steps = _Walk(run, worker, watching)
    watching.begun(run, steps.finished)
    with deferred(worker.wake) as interrupts:
        try:
            steps.go_on(width, interrupts)
        except BaseException as error:
            steps.cancel(type(error).__name__)
            steps.go_on(width, interrupts)
            raise
    return RunReport(
        run=run.id,
        operation=run.plan.operation,
        plan=run.plan,
        summary=steps.execution.summary(),
        outcomes=_all_outcomes(steps),
        steps=steps.reports,
        seconds=steps.seconds,
        after={step_id: moment - began for step_id, moment in steps.ended.items()},
        elapsed=time.monotonic() - began,
        errors=steps.errors,
    )


def _all_outcomes(steps: _Walk) -> Mapping[str, Outcome]:
    return dict(steps.execution.outcomes)
