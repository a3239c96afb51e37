"""How a run ended, for the Prefect UI: the flow's state, artifacts and events."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prefect.states import Completed, Failed

from vmkeep.errors import PartialError
from vmkeep.planning import State as Ended
from vmkeep.planning import Verb
from vmkeep.reports.drills import drill_markdown
from vmkeep.reports.graph_text import plan_mermaid
from vmkeep.units import format_duration, format_size

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from vmkeep.operations.report import RunReport
    from vmkeep.operations.run import Run


def publish(run: Run, report: RunReport) -> None:
    """Leave the report as artifacts, and emit what automations may act on."""
    fleet = run.file.fleet.fleet
    key = re.sub(r"[^a-z0-9]+", "-", f"{fleet}-{report.operation}".lower())
    create_table_artifact(key=f"{key}-steps", table=_rows(report), description=report.summary.sentence)
    create_markdown_artifact(key=key, markdown=markdown(report), description=report.summary.sentence)
    for step in report.plan.steps.values():
        outcome = report.outcomes.get(step.id)
        if step.verb is not Verb.SEAL or outcome is None:
            continue
        sealed = outcome.state is Ended.SUCCEEDED
        partial = isinstance(report.errors.get(step.id), PartialError)
        event = (
            "vmkeep.point.sealed" if sealed else "vmkeep.point.partial" if partial else "vmkeep.point.failed"
        )
        _emit(event, fleet, step.vms[0], run.id, outcome.reason)
    if report.drill is not None and report.exit_code == 0:
        _emit("vmkeep.drill.passed", fleet, "", run.id, report.drill.sentence)
    elif report.drill is not None:
        _emit("vmkeep.drill.failed", fleet, "", run.id, _sentence(report))
    elif not report.summary.complete:
        _emit(f"vmkeep.{report.operation}.failed", fleet, "", run.id, report.summary.sentence)


def final_state(report: RunReport) -> State[Any]:
    """Return the state of the flow run: what really happened, not that the function returned."""
    if report.exit_code == 0:
        return Completed(message=_sentence(report))
    if report.summary.complete:
        return Failed(name="MissedObjective", message=_sentence(report))
    name = "Partial" if report.exit_code == PartialError.exit_code else "Failed"
    return Failed(name=name, message=report.summary.sentence)


def _sentence(report: RunReport) -> str:
    """Return how it went; of a drill also what it found out."""
    if report.drill is None:
        return report.summary.sentence
    return f"{report.drill.sentence}: {report.summary.sentence}"


def markdown(report: RunReport) -> str:
    """Return the report of a run as Markdown."""
    moved = sum(step.read for name, step in report.steps.items() if name.startswith(("backup ", "restore ")))
    stored = sum(step.stored for name, step in report.steps.items() if name.startswith("backup "))
    lines = [
        f"# {report.plan.fleet}: {report.operation}",
        f"Run `{report.run}`: **{report.summary.sentence}**",
        f"{format_size(moved)} moved, {format_size(stored)} stored, in {format_duration(report.elapsed)}.",
    ]
    lines += [f"> {report.trouble}"] if report.trouble else []
    lines += [drill_markdown(report.drill).rstrip()] if report.drill is not None else []
    failed = [(step, one) for step, one in report.outcomes.items() if one.state is not Ended.SUCCEEDED]
    if failed:
        lines += [
            "## What did not succeed",
            *(f"- `{step}` {one.state}: {one.reason}" for step, one in failed),
        ]
    lines += ["## Steps", "| step | state | time | what |", "|---|---|---|---|"]
    table = [f"| {row['step']} | {row['state']} | {row['time']} | {row['what']} |" for row in _rows(report)]
    graph = ["## Graph", "```mermaid", plan_mermaid(report.plan).rstrip(), "```"]
    return (
        "\n\n".join(lines[:-2]) + "\n\n" + "\n".join([*lines[-2:], *table]) + "\n\n" + "\n".join(graph) + "\n"
    )


def _rows(report: RunReport) -> list[dict[str, Any]]:
    rows = []
    for step in report.plan.order():
        outcome = report.outcomes.get(step.id)
        done = report.steps.get(step.id)
        rows.append(
            {
                "step": step.id,
                "state": outcome.state.value if outcome else "",
                "time": format_duration(report.seconds[step.id]) if step.id in report.seconds else "",
                "what": done.text if done else outcome.reason if outcome else "",
            }
        )
    return rows


def _emit(event: str, fleet: str, vm: str, run: str, message: str) -> None:
    resource = {
        "prefect.resource.id": f"vmkeep.{fleet}.{vm}".rstrip("."),
        "prefect.resource.name": vm or fleet,
    }
    emit_event(event, resource=resource, payload={"fleet": fleet, "vm": vm, "run": run, "message": message})
