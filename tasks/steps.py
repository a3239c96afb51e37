"""One task a verb. Each is one call into the library; a task says no more than how often it may be retried.

Arguments and results are small: bytes of a disk never pass through Prefect.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks import progress
from vmkeep.operations import steps
from vmkeep.operations.retry import DELAYS_S, attempts, is_temporary
from vmkeep.operations.run import Run
from vmkeep.planning import Verb

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun

    from vmkeep.operations.report import StepReport

listeners: Final[dict[str, Any]] = {}
"""Who wants to hear of bytes done, by run folder: the command line's progress bars."""


def _again(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry what may succeed later: never bad input or damaged data."""
    try:
        state.result(raise_on_failure=True)
    except BaseException as error:  # noqa: BLE001  (any failure is looked at)
        return is_temporary(error)
    return False


def _carry_out(run: str, step: str) -> StepReport:
    """Carry out one step of the run in the folder *run*."""
    opened = Run.reopen(Path(run))
    listener = listeners.get(run)

    def told(size: int) -> None:
        if listener is not None:
            listener(step, size)

    with progress.shown(step, opened.plan.steps[step].estimate.size, told) as count:
        report = steps.perform(opened, step, count)
    logger = get_run_logger()
    logger.info("%s: %s", step, report.text)
    for line in report.details:
        logger.info("%s: %s", step, line)
    return report


def _task(verb: Verb) -> Task[[str, str], StepReport]:
    delays = list(DELAYS_S[: attempts(verb) - 1])
    return task(
        name=verb.value,
        description=steps.describe(verb),
        task_run_name="{step}",
        # A second try of a run is planned by the library, which knows what a step's work still depends on.
        cache_policy=NO_CACHE,
        retries=len(delays),
        retry_delay_seconds=delays or None,
        retry_jitter_factor=0.5 if delays else None,
        retry_condition_fn=_again,
    )(_carry_out)


TASKS: Final = {verb: _task(verb) for verb in Verb}
"""The task of each verb; called with the run's folder and the step's id."""
