"""A plan as rows and as text: what `vmkeep plan` prints, without deciding how it looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.units import format_duration, format_size

if TYPE_CHECKING:
    from vmkeep.planning import Plan, Schedule


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One step of a plan, for a table."""

    wave: int
    """From 1; a step waits only for steps of earlier waves."""
    step: str
    needs: tuple[str, ...]
    after: tuple[str, ...]
    """What it only waits for."""
    seconds: float
    size: int
    """Bytes."""
    start: float | None
    """Predicted, in seconds from the begin; `None` without a schedule."""
    always: bool
    critical: bool


def plan_rows(plan: Plan, schedule: Schedule | None = None) -> list[PlanRow]:
    """Return the steps by wave, and inside a wave by predicted start and name."""
    starts = {slot.step.id: slot.start for slot in schedule.slots} if schedule else {}
    critical = {step.id for step in plan.critical_path()}
    rows = [
        PlanRow(
            wave=number,
            step=step.id,
            needs=tuple(sorted(step.needs)),
            after=tuple(sorted(step.after)),
            seconds=step.estimate.seconds,
            size=step.estimate.size,
            start=starts.get(step.id),
            always=step.always,
            critical=step.id in critical,
        )
        for number, wave in enumerate(plan.waves(), 1)
        for step in wave
    ]
    return sorted(rows, key=lambda row: (row.wave, row.start or 0.0, row.step))


def plan_text(plan: Plan, schedule: Schedule | None = None) -> str:
    """Return the plan for a terminal or a log: steps in waves, then what decides how long it takes.

    `*` marks the critical path, `!` steps that run whatever happened before.
    """
    rows = plan_rows(plan, schedule)
    lines = [f"{plan.operation} {plan.fleet}: {len(rows)} steps in {len(plan.waves())} waves"]
    wave = 0
    for row in rows:
        if row.wave != wave:
            wave = row.wave
            lines.append(f"wave {wave}")
        marks = ("*" if row.critical else " ") + ("!" if row.always else " ")
        size = format_size(row.size) if row.size else ""
        lines.append(f"  {marks} {row.step:<44} {format_duration(row.seconds):>9} {size:>10}".rstrip())
    lines.append("critical path: " + " -> ".join(step.id for step in plan.critical_path()))
    lines.append(_duration(plan, schedule))
    return "\n".join([*lines, ""])


def _duration(plan: Plan, schedule: Schedule | None) -> str:
    least = format_duration(plan.length())
    if schedule is None:
        return f"takes at least {least}"
    return f"takes about {format_duration(schedule.makespan)}, at least {least} with every limit lifted"
