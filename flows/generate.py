"""From a fleet to its flows: in memory, with the fleet's own names, graph and run form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows import engine, forms, results, secrets
from vmkeep.operations import lifecycle

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect import Flow
    from prefect.client.schemas.objects import State
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner

    from vmkeep.fleet import FleetFile
    from vmkeep.operations.engine import Observer
    from vmkeep.operations.report import RunReport
    from vmkeep.operations.request import Operation, Request

WIDTH = 8
"""How many steps run at the same time, at most; the fleet file's `limits` hold besides."""

DESCRIPTIONS: dict[Operation, str] = {
    "configure": "Make the VMs what the fleet file declares. Nothing is shrunk or deleted.",
    "backup": "Save the VMs: one recovery point for each, sealed when all that was read is in the store.",
    "restore": "Restore VMs in the order of their dependencies, each checked before the next.",
    "drill": "Prove that services can be recovered: restored into an isolated network, checked, torn down.",
    "prune": "Forget what retention does not keep, and free the space that only that needed.",
    "verify": "Read recovery points back and check every chunk.",
    "copy": "Copy recovery points into the other repositories of the fleet: what these lack.",
}


def generate(
    file: FleetFile,
    operation: Operation,
    *,
    observer: Observer | None = None,
    resume: str | None = None,
    ended: Callable[[RunReport], None] | None = None,
) -> Flow[..., State[Any]]:
    """Return the flow of *operation* for a fleet.

    Args:
        observer: is told what happens while it runs.
        resume: continue this run instead of starting one.
        ended: is handed the report.
    """

    def body(**parameters: Any) -> State[Any]:
        request = forms.request(operation, parameters)
        return carry_out(request, observer=observer, resume=resume, ended=ended)

    body.__name__ = body.__qualname__ = operation
    form = forms.signature(file, operation)
    body.__signature__ = form  # type: ignore[attr-defined]
    body.__doc__ = forms.docstring(form, DESCRIPTIONS[operation])
    return flow(
        name=f"{file.fleet.fleet}-{operation}",
        description=DESCRIPTIONS[operation],
        flow_run_name=run_name,
        task_runner=threads(),
    )(body)


def run_name() -> str:
    """Return what the present flow run is about, such as `backup db1, app1`."""
    given = flow_run.get_parameters()
    targets = [name for key in ("targets", "vms", "components") for name in given.get(key) or []]
    name = str(flow_run.get_flow_name() or "").rpartition("-")[2]
    return f"{name} {', '.join(map(str, targets)) or 'all'}"[:200]


def threads() -> TaskRunner[PrefectFuture[Any]]:
    """Return where the steps of a flow run: threads of its own process."""
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=WIDTH)
    return runner


def carry_out(
    request: Request,
    *,
    observer: Observer | None = None,
    resume: str | None = None,
    ended: Callable[[RunReport], None] | None = None,
) -> State[Any]:
    """Carry out *request* inside the present flow run, and return that run's final state.

    A flow run that is tried again finds the run it began, and does only what did not succeed.
    """
    secrets.register()
    suffix = str(flow_run.get_id()).replace("-", "")[:8]
    with lifecycle.resume(request, resume) if resume else lifecycle.begin(request, suffix=suffix) as run:
        report = lifecycle.finish(run, engine.carry_out(run, width=WIDTH, observer=observer))
    results.publish(run, report)
    if ended is not None:
        ended(report)
    return results.final_state(report)
