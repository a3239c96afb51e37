"""How a run ended: the last lines for people, and all of it as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from vmkeep.cli.console import out, print_table
from vmkeep.operations.report import StepReport
from vmkeep.planning import State, Verb
from vmkeep.reports.drills import drill_rows
from vmkeep.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.operations.report import RunReport
    from vmkeep.planning.drilled import DrillResult

RESUMED: Final = frozenset({"backup", "restore"})
"""The operations whose commands have `--resume`."""


def print_report(report: RunReport) -> None:
    """Print what was done in one line, and in red what is missing."""
    cost = _cost(report)
    sizes = {
        "backup": f", read {format_size(cost.read)}, new {format_size(cost.new)}, "
        f"stored {format_size(cost.stored)}",
        "restore": f", {format_size(cost.read)} written",
        "drill": f", {format_size(cost.read)} written",
        "verify": f", {format_size(cost.read)} read back",
    }.get(report.operation, "")
    done = (
        f"{report.summary.succeeded} of {report.summary.total} steps{sizes} in "
        f"{format_duration(report.elapsed)}; run {report.run}"
    )
    if report.operation == "prune":
        for name, step in report.steps.items():
            out().print(f"{name}: {step.text}", markup=False)
            for line in step.details:
                out().print(f"  {line}", markup=False)
    if report.drill is not None:
        print_table(_drilled(report.drill))
    if report.trouble:
        out().print(Text(report.trouble, "yellow"))
    if report.drill is not None and report.summary.complete and report.drill.missed:
        out().print(Text.assemble((f"drill {report.drill.sentence}", "bold red"), f": {done}"))
        return
    if report.summary.complete:
        out().print(Text.assemble((f"{report.operation} complete", "bold green"), f": {done}"))
        return
    word = "PARTIAL" if report.exit_code == 3 else "FAILED"
    out().print(Text.assemble((f"{report.operation} {word}", "bold red"), f": {done}"))
    for line in _troubles(report):
        out().print(Text(f"  {line}", "red"))
    if report.operation in RESUMED:
        out().print(Text(f"  --resume {report.run} repeats only what did not succeed"))


def as_json(report: RunReport) -> dict[str, Any]:
    """Return the report for programs; sizes in bytes, times in seconds."""
    cost = _cost(report)
    return {
        "run": report.run,
        "operation": report.operation,
        "fleet": report.plan.fleet,
        "complete": report.summary.complete,
        "exit_code": report.exit_code,
        "sentence": report.summary.sentence,
        "trouble": report.trouble,
        "elapsed": report.elapsed,
        "read": cost.read,
        "new": cost.new,
        "stored": cost.stored,
        "steps": [_step(report, name) for name in report.outcomes],
        **({"drill": report.drill.record()} if report.drill is not None else {}),
    }


def _drilled(result: DrillResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("SERVICE/VM", "RECOVERED AFTER", "OBJECTIVE", "RESULT"):
        table.add_column(name, overflow="fold")
    for row in drill_rows(result):
        bad = row.result.startswith(("failed", "missed"))
        table.add_row(row.name, row.after, row.objective, Text(row.result, "bold red" if bad else "green"))
    return table


def _step(report: RunReport, name: str) -> dict[str, Any]:
    outcome, done = report.outcomes[name], report.steps.get(name, StepReport())
    return {
        "step": name,
        "state": outcome.state.value,
        "reason": outcome.reason,
        "seconds": report.seconds.get(name),
        "text": done.text,
        "read": done.read,
        "new": done.new,
        "stored": done.stored,
        "freed": done.freed,
        "details": list(done.details),
    }


def _cost(report: RunReport) -> StepReport:
    """Return the sum over the steps that moved data; others only repeat it."""
    by_operation = {
        "backup": Verb.BACKUP, "restore": Verb.RESTORE, "drill": Verb.RESTORE, "verify": Verb.VERIFY,
        "copy": Verb.COPY,
    }  # fmt: skip
    moved = by_operation.get(report.operation)
    steps = [done for name, done in report.steps.items() if report.plan.steps[name].verb is moved]
    return StepReport(
        read=sum(done.read for done in steps),
        new=sum(done.new for done in steps),
        stored=sum(done.stored for done in steps),
    )


def _troubles(report: RunReport) -> Iterator[str]:
    for name, outcome in report.outcomes.items():
        if outcome.state is State.FAILED:
            yield f"{name}: {outcome.reason}"
    skipped = [name for name, outcome in report.outcomes.items() if outcome.state is State.SKIPPED]
    if skipped:
        yield f"not done because of it: {', '.join(skipped)}"
