"""Runs a fleet's flow in this process, with the server that is there or one of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from flows import settings
from vmkeep import fleet as fleets
from vmkeep.errors import TemporaryError, VmkeepError

if TYPE_CHECKING:
    from vmkeep.operations.engine import Observer
    from vmkeep.operations.report import RunReport
    from vmkeep.operations.request import Request


def run_flow(request: Request, *, observer: Observer | None = None, resume: str | None = None) -> RunReport:
    """Carry out *request* as a flow run, and return its report.

    Raises:
        VmkeepError: it cannot be carried out; nothing was touched.
        TemporaryError: Prefect's server is away.
    """
    settings.require_server()
    # The observer shows what happens; the server keeps all of the log.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from flows.generate import generate  # noqa: PLC0415  (Prefect costs a second, and reads its settings)

    reports: list[RunReport] = []
    file = fleets.load(request.fleet)
    flow = generate(file, request.operation, observer=observer, resume=resume, ended=reports.append)
    # The form offers whole VMs; a request may also name `db1/databases` or `web*`: it is checked by itself.
    flow = flow.with_options(validate_parameters=False)
    state = flow(**parameters(request), return_state=True)
    if reports:
        return reports[0]
    error = state.result(raise_on_failure=False)
    if isinstance(error, VmkeepError):
        raise error
    raise TemporaryError(f"Prefect could not run the flow: {state.message}; --direct does without it")


def parameters(request: Request) -> dict[str, Any]:
    """Return *request* as the parameters of its flow."""
    given: dict[str, Any] = {"fleet": str(request.fleet.absolute())}
    if request.operation == "prune":
        given["dead_after"] = f"{request.dead_after:g}s"
    elif request.operation == "drill":
        given |= {"targets": list(request.targets), "at": request.at, "points": request.points}
        given["instant"] = request.instant
    else:
        given["vms"] = list(request.targets)
    if request.operation == "copy":
        given["copies"] = list(request.copies)
    elif request.operation not in {"configure", "prune", "drill"}:
        given["components"] = list(request.kinds)
    if request.operation == "backup":
        given["any_time"] = request.any_time
    if request.operation == "restore":
        given |= {
            "at": request.at,
            "points": request.points,
            "rename": request.rename,
            "dependencies": request.dependencies,
            "overwrite": request.overwrite,
            "instant": request.instant,
            "bandwidth": request.bandwidth,
            "disks": list(request.disks),
            "networks": request.networks,
            "storage": request.storage,
            "hypervisors": list(request.hypervisors),
        }
    if request.operation == "verify":
        given |= {"percent": request.share * 100, "packs": request.packs}
    if request.repository is not None:
        given["repository"] = request.repository
    return given
