"""Walks a plan as a Prefect flow run: every step is a task run, called like the step."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from prefect import allow_failure

from tasks.steps import TASKS, listeners
from vmkeep.operations.engine import Silent, walk

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

    from vmkeep.operations.engine import Observer
    from vmkeep.operations.report import RunReport, StepReport
    from vmkeep.operations.run import Run
    from vmkeep.planning import Step


class _TaskRuns:
    """Submits steps that are ready, so that none waits in a thread; the edges are passed on for the UI."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._futures: dict[str, PrefectFuture[Any]] = {}
        self._ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def submit(self, step: Step) -> None:
        """Start a step as a task run."""
        # All before it are over. Whether one that failed matters was decided by Execution, not by Prefect.
        waits = [
            allow_failure(self._futures[name])
            for name in sorted(self._run.plan.graph.predecessors(step.id))
            if name in self._futures
        ]
        task = TASKS[step.verb].with_options(tags=[f"vm:{vm}" for vm in step.vms])
        future: PrefectFuture[Any] = task.submit(
            str(self._run.folder), step.id, return_state=False, wait_for=waits
        )
        self._futures[step.id] = future
        future.add_done_callback(lambda _: self._ended.put(step.id))

    def wait(self) -> tuple[str, StepReport | BaseException] | None:
        """Return a step that ended."""
        step_id = self._ended.get()
        if step_id is None:
            return None
        result: StepReport | BaseException = self._futures[step_id].result(raise_on_failure=False)
        return step_id, result

    def wake(self) -> None:
        """Let `wait` return."""
        self._ended.put(None)  # a SimpleQueue may be used in a signal handler


def carry_out(run: Run, *, width: int = 8, observer: Observer | None = None) -> RunReport:
    """Carry out *run* inside the flow run that calls this."""
    watching = observer or Silent()
    listeners[str(run.folder)] = watching.advanced
    try:
        return walk(run, _TaskRuns(run), width=width, observer=watching)
    finally:
        del listeners[str(run.folder)]
