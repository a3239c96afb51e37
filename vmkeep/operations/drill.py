"""The steps of a drill that a restore does not have: its network, its VMs' identity, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.components.gates import Clock, pass_gates
from vmkeep.components.subject import Subject
from vmkeep.operations import restore, serving
from vmkeep.operations.configure import lines
from vmkeep.operations.report import StepReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.operations.run import Run
    from vmkeep.planning import Step


def isolate(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Make the network that only the VMs of this drill are in."""
    run.hypervisor_of(step.vms[0]).isolate(run.drill)
    return StepReport(f"network {run.drill}")


def place(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Decide where the VM is restored to, and clear away what an interrupted try of this drill left there."""
    (name,) = step.vms
    run.hypervisor_of(name).remove(run.target(name), drill=run.drill)
    return StepReport(f"on {run.file.fleet.vms[name].hypervisor} as {run.target(name)}")


def create(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Create the VM under another name and with a new identity, in the isolated network alone."""
    (name,) = step.vms
    point = run.point(name)
    changes = run.hypervisor_of(name).create(
        run.target(name), point.definition, overwrite=False, drill=run.drill
    )
    return StepReport(f"as in {point.session} of {point.taken}", details=lines(changes))


def health(run: Run, step: Step, progress: Callable[[int], None]) -> StepReport:
    """Check the VM from its inside; its dependents wait for it."""
    (name,) = step.vms
    if f"start {name}" not in run.plan.steps:
        return restore.health(run, step, progress)
    vm, base = run.file.fleet.vms[name], run.file.path.absolute().parent
    with Subject(
        run.target(name), vm, run.hypervisor_of(name), base, original=False, isolated=True
    ) as subject:
        found = pass_gates(subject, Clock(wait=run.cancelled.wait))
    return StepReport(f"healthy: {len(found)} check(s) passed", details=found)


def remove(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Remove the VM that this drill created, with its disks; or, at the end, the network."""
    if not step.vms:
        run.hypervisor(step.group or "").end_isolation(run.drill)
        return StepReport(f"network {run.drill} removed")
    (name,) = step.vms
    run.close_files(name)
    hypervisor = run.hypervisor_of(name)
    hypervisor.remove(run.target(name), drill=run.drill)
    if f"serve {name}" in run.plan.steps:
        serving.dismiss(serving.folder_of(run.file, run.file.fleet.vms[name].hypervisor, run.target(name)))
    return StepReport(f"{run.target(name)} removed")
