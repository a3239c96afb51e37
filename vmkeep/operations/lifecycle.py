"""The beginning and the end of a run, the same for both engines."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vmkeep import fleet as fleets
from vmkeep.errors import ConflictError, VmkeepError
from vmkeep.operations import kept_points, orphans
from vmkeep.operations.drilled import measure
from vmkeep.operations.placed import placed
from vmkeep.operations.places import chosen
from vmkeep.operations.prepare import prepare
from vmkeep.operations.reap import reap
from vmkeep.operations.run import Run, dead_runs, new_run_id
from vmkeep.operations.state import state_folder
from vmkeep.planning import State, Verb

if TYPE_CHECKING:
    from vmkeep.operations.report import RunReport
    from vmkeep.operations.request import Request
    from vmkeep.planning.drilled import DrillResult

_KEPT: Final = 10
"""How many failed runs are kept for `--resume`."""


def begin(request: Request, *, suffix: str | None = None) -> Run:
    """Check and plan *request*, clear away what dead runs left, and start its run.

    Args:
        suffix: 8 hex digits. A run that an earlier process began with the same is continued instead.

    Raises:
        InputError: it cannot be carried out; nothing was touched.
    """
    file = fleets.load(request.fleet)
    name = new_run_id(datetime.now(UTC), suffix)
    if suffix is not None:
        for folder in (state_folder(file.fleet.fleet) / "runs").glob(f"*-{suffix}"):
            return _continued(Run.reopen(folder))
    doubts: list[str] = []
    request = placed(file, chosen(file, request, doubts.append))
    plan, points = prepare(file.at(request.repository).on(request.placed), request)
    left = [*doubts, *reap(file)]
    if plan.operation in {"backup", "restore", "drill"}:
        left += orphans.clear(file)
    run = Run.begin(name, request, plan, points)
    run.troubles = tuple(left)
    try:
        kept_points.hold(run)
    except BaseException:
        kept_points.let_go(run)
        run.forget()
        raise
    return run


def resume(request: Request, run_id: str) -> Run:
    """Continue a run that failed or was interrupted: only what did not succeed is done again.

    Raises:
        NotFoundError: it is not known here.
        ConflictError: another process carries it out, or it was of another operation.
    """
    file = fleets.load(request.fleet)
    run = Run.reopen(state_folder(file.fleet.fleet) / "runs" / run_id)
    if run.request.operation != request.operation:
        run.close()
        raise ConflictError(f"run {run_id} is a {run.request.operation}, not a {request.operation}")
    return _continued(run)


def finish(run: Run, report: RunReport) -> RunReport:
    """Write the record of a backup into the repository, and drop what is not needed any more.

    Returns:
        The report, with the trouble there was, if any.
    """
    if report.operation == "drill":
        return _finish_drill(run, report)
    recorded = _record(run, report) if report.operation == "backup" else None
    troubles = [*run.troubles, *([recorded] if recorded else [])]
    # A restore that failed may be continued; a verification that failed has nothing more to read.
    if report.summary.complete or report.operation == "verify":
        kept_points.let_go(run)
    if report.summary.complete:
        run.forget()
    else:
        run.close()
        for old in [*dead_runs(run.file.fleet.fleet)][_KEPT:]:
            kept_points.drop(old)
    return replace(report, trouble="; ".join(troubles) or None)


def _finish_drill(run: Run, report: RunReport) -> RunReport:
    """Write down what a drill proved. Nothing of it is continued: what stays is what could not be removed."""
    result = measure(run.file.fleet, report, run.chosen)
    recorded = None if run.cancelled.is_set() else _record_drill(run, report, result)
    kept_points.let_go(run)
    removals = [step.id for step in report.plan.steps.values() if step.verb is Verb.REMOVE]
    if all(report.outcomes[name].state is State.SUCCEEDED for name in removals):
        run.forget()
    else:
        run.close()
    trouble = "; ".join([*run.troubles, *([recorded] if recorded else [])])
    return replace(report, drill=result, trouble=trouble or None)


def _record_drill(run: Run, report: RunReport, result: DrillResult) -> str | None:
    record = {
        "fleet": run.file.fleet.fleet,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "sentence": report.summary.sentence,
        **result.record(),
    }
    try:
        run.repository.put_drill(run.id, record)
    except VmkeepError as error:
        return f"the record of drill {run.id} was not written: {error}"
    return None


def _continued(run: Run) -> Run:
    try:
        kept_points.hold(run)
    except BaseException:
        run.close()
        raise
    return run


def _record(run: Run, report: RunReport) -> str | None:
    taken = {vm: snapshot.taken for snapshot in run.taken.all() for vm in snapshot.machines}
    record = {
        "fleet": run.file.fleet.fleet,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "sentence": report.summary.sentence,
        "complete": report.summary.complete,
        "taken": taken,
        "failed": {step: one.reason for step, one in report.outcomes.items() if one.state is State.FAILED},
    }
    try:
        run.repository.put_run(run.id, record)
    except ConflictError:
        return None  # written by the first try of a run that was continued: records are never changed
    except VmkeepError as error:
        return f"the record of run {run.id} was not written: {error}"
    return None
