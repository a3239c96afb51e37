"""Which VMs a drill is about, and what its walk shows. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkeep import fleet as fleets
from vmkeep.errors import UnsupportedError
from vmkeep.planning import State
from vmkeep.planning.drilled import DrilledService, DrilledVM, DrillResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmkeep.fleet import Fleet
    from vmkeep.operations.report import RunReport
    from vmkeep.planning import Facts

NOT_APPLICABLE: Final = "not applicable"
"""How what is told of a gate begins that a drill cannot try."""


def drilled_vms(fleet: Fleet, targets: Sequence[str]) -> list[str]:
    """Return the targets of a drill as VMs: a service stands for those that give it.

    Without any: all services, or where none is declared the whole fleet.

    Raises:
        UnsupportedError: a target names a component; a drill is of whole VMs.
    """
    if parts := [target for target in targets if "/" in target]:
        raise UnsupportedError(f"a drill is of whole VMs: write {parts[0].split('/')[0]}, not {parts[0]}")
    chosen: list[str] = []
    for target in targets or fleet.objectives or fleet.vms:
        objective = fleet.objectives.get(target)
        chosen += [target] if objective is None else objective.vms
    return [*dict.fromkeys(chosen)]


def require_drillable(fleet: Fleet, vms: Iterable[str], facts: Facts) -> None:
    """Refuse VMs of which a drill could not tell whether they came back.

    Raises:
        UnsupportedError: names all of them.
    """
    found = mute(fleet, (name for name in vms if fleet.vms[name].hypervisor not in facts.powered_off))
    if found:
        raise UnsupportedError(
            f"VM {', '.join(found)}: in a drill's isolated network only the guest agent leads into a VM: "
            "declare guest: {agent: true}, or drill services that do not need it"
        )


def mute(fleet: Fleet, vms: Iterable[str]) -> list[str]:
    """Return those VMs that declare no guest agent."""
    return [name for name in vms if not ((guest := fleet.vms[name].guest) and guest.agent)]


def measure(fleet: Fleet, report: RunReport, points: Mapping[str, str]) -> DrillResult:
    """Return what the walk of a drill shows.

    Args:
        points: the sessions of the recovery points that were restored, by VM.
    """
    drilled = [name for name in fleet.vms if f"health {name}" in report.plan.steps]
    vms = tuple(_of_vm(report, name, points[name]) for name in drilled)
    proven = {one.vm: one.seconds for one in vms}
    services = []
    for name, objective in fleet.objectives.items():
        closure = tuple(vm for vm in fleet.vms if vm in fleets.dependencies(fleet, objective.vms))
        if set(closure) <= set(proven):
            times = [proven[vm] for vm in closure]
            known = [seconds for seconds in times if seconds is not None]
            services.append(
                DrilledService(name, closure, max(known) if len(known) == len(times) else None, objective.rto)
            )
    return DrillResult(vms, tuple(services))


def _of_vm(report: RunReport, vm: str, session: str) -> DrilledVM:
    name = f"health {vm}"
    outcome = report.outcomes.get(name)
    passed = outcome is not None and outcome.state is State.SUCCEEDED
    done = report.steps.get(name)
    return DrilledVM(
        vm, session, passed,
        booted=f"start {vm}" in report.plan.steps,
        seconds=report.after.get(name) if passed else None,
        checks=len(done.details) if done else 0,
        reason="" if passed else _reason(report, vm),
        skipped_gates=tuple(
            line.rpartition(" (after ")[0]
            for line in (done.details if done else ())
            if line.startswith(NOT_APPLICABLE)
        ),
    )  # fmt: skip


def _reason(report: RunReport, vm: str) -> str:
    """Return why a VM did not pass: the failure of one of its own steps, or else what skipped it."""
    mine = [
        one
        for name, one in report.outcomes.items()
        if vm in report.plan.steps[name].vms and one.state is not State.SUCCEEDED
    ]
    failed = [one for one in mine if one.state is State.FAILED]
    return next((one.reason for one in [*failed, *mine]), "the drill ended before")
