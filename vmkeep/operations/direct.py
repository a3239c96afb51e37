"""The engine without Prefect: threads, and the same steps. A restore must not need an orchestrator."""

from __future__ import annotations

import queue
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from vmkeep.operations import lifecycle
from vmkeep.operations.engine import Silent, walk
from vmkeep.operations.retry import DELAYS_S, attempts, is_temporary
from vmkeep.operations.steps import perform

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.operations.engine import Observer
    from vmkeep.operations.report import RunReport, StepReport
    from vmkeep.operations.request import Request
    from vmkeep.operations.run import Run
    from vmkeep.planning import Step


class _Threads:
    """Carries out each step in a thread, and tries again what failed for now."""

    def __init__(
        self, run: Run, pool: ThreadPoolExecutor, observer: Observer, sleep: Callable[[float], None]
    ) -> None:
        self._run, self._pool, self._observer, self._sleep = run, pool, observer, sleep
        self._ended: queue.SimpleQueue[tuple[str, StepReport | BaseException] | None] = queue.SimpleQueue()

    def submit(self, step: Step) -> None:
        self._pool.submit(self._carry_out, step)

    def wait(self) -> tuple[str, StepReport | BaseException] | None:
        return self._ended.get()

    def wake(self) -> None:
        self._ended.put(None)  # a SimpleQueue may be used in a signal handler

    def _carry_out(self, step: Step) -> None:
        result: StepReport | BaseException
        try:
            result = self._try(step)
        except BaseException as error:  # noqa: BLE001  (handed to the loop, which reports it)
            result = error
        self._ended.put((step.id, result))

    def _try(self, step: Step) -> StepReport:
        most = attempts(step.verb)
        for attempt in range(1, most):
            try:
                return self._once(step)
            except Exception as error:
                if not is_temporary(error):
                    raise
                self._sleep(DELAYS_S[attempt - 1] * (1 + random.random() / 2))  # noqa: S311  (jitter)
        return self._once(step)

    def _once(self, step: Step) -> StepReport:
        return perform(self._run, step.id, lambda size: self._observer.advanced(step.id, size))


def run_direct(request: Request, *, observer: Observer | None = None, resume: str | None = None) -> RunReport:
    """Carry out *request* without Prefect, from the check of the fleet file to the record of the run.

    Args:
        resume: continue this run instead of starting one.

    Raises:
        InputError: it cannot be carried out; nothing was touched.
    """
    run = lifecycle.begin(request) if resume is None else lifecycle.resume(request, resume)
    with run:
        return lifecycle.finish(run, carry_out(run, observer=observer))


def carry_out(
    run: Run,
    *,
    width: int = 8,
    observer: Observer | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> RunReport:
    """Carry out *run* in threads of this process."""
    watching = observer or Silent()
    with ThreadPoolExecutor(width, thread_name_prefix="step") as pool:
        return walk(run, _Threads(run, pool, watching, sleep), width=width, observer=watching)
