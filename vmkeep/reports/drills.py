"""What a drill found out as rows: services first, then their VMs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmkeep.planning.drilled import DrilledVM, DrillResult


@dataclass(frozen=True, slots=True)
class DrillRow:
    """A service or a VM, for a table."""

    name: str
    after: str
    """How long after the begin of the drill it was there again; empty: it was not."""
    objective: str
    result: str


def drill_rows(result: DrillResult) -> list[DrillRow]:
    """Return a row for each service, and then one for each VM in the order of the fleet file."""
    rows = [
        DrillRow(
            one.name,
            format_duration(one.seconds) if one.seconds is not None else "",
            format_duration(one.rto) if one.rto is not None else "",
            one.verdict,
        )
        for one in result.services
    ]
    return [*rows, *(DrillRow(one.vm, _after(one), "", _result(one)) for one in result.vms)]


def drill_markdown(result: DrillResult) -> str:
    """Return the table, and which gates could not be tried, as Markdown."""
    lines = ["## Recovery times", "", "| service or VM | recovered after | objective | result |"]
    lines += ["|---|---|---|---|"]
    lines += [f"| {row.name} | {row.after} | {row.objective} | {row.result} |" for row in drill_rows(result)]
    return "\n".join([*lines, *_skipped(result.vms), ""])


def _after(vm: DrilledVM) -> str:
    return format_duration(vm.seconds) if vm.seconds is not None else ""


def _result(vm: DrilledVM) -> str:
    if not vm.passed:
        return f"failed: {vm.reason}"
    how = f"booted from {vm.session}" if vm.booted else f"{vm.session} restored, {vm.checks} check(s) passed"
    return how + "".join(f"; {gate}" for gate in vm.skipped_gates)


def _skipped(vms: Iterable[DrilledVM]) -> list[str]:
    told = [f"- {one.vm}: {gate}" for one in vms for gate in one.skipped_gates]
    return ["", "Gates that were not tried:", "", *told] if told else []
