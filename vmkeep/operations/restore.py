"""The steps of a restore: place, create, write, start, health, release."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vmkeep import fleet as fleets
from vmkeep.components.base import RestoreContext
from vmkeep.components.gates import Clock, pass_gates
from vmkeep.components.health import check_images
from vmkeep.components.open import open_component
from vmkeep.components.subject import Subject
from vmkeep.errors import InputError, NotFoundError
from vmkeep.fleet import PRIMARY
from vmkeep.hypervisors.base import Elsewhere
from vmkeep.operations import replaced, serving
from vmkeep.operations.configure import lines
from vmkeep.operations.report import StepReport
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.hypervisors.base import Hypervisor
    from vmkeep.operations.request import Request
    from vmkeep.operations.run import Run
    from vmkeep.planning import Step


def place(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Decide where the VM is restored to, and refuse before anything is written."""
    (name,) = step.vms
    require_free(run.hypervisor_of(name), name, run.request)
    there, target = run.file.fleet.vms[name].hypervisor, run.target(name)
    declared = fleets.load(run.request.fleet).fleet.vms[name].hypervisor
    moved = (
        f"VM {name} will be on {there}, and is declared on {declared}: say 'hypervisor: {there}' in the "
        "fleet file, so that it is saved where it is"
    )
    return StepReport(
        f"on {there} as {target}", details=(moved,) if target == name and there != declared else ()
    )


def require_free(hypervisor: Hypervisor, name: str, request: Request) -> None:
    """Refuse to write over a VM unless that was asked for.

    Raises:
        InputError: it exists, and overwriting was not asked for.
    """
    target = request.rename.get(name, name)
    if not request.overwrite and hypervisor.exists(target):
        if hypervisor.streams is not None and hypervisor.streams.behind(target):
            raise InputError(
                f"VM {target} was restored instantly, and not all of its data is there: 'vmkeep stream "
                f"{target}' goes on with that; say --overwrite to restore it anew"
            )
        raise InputError(
            f"VM {target} exists: say --overwrite to replace what is restored, or restore it under "
            f"another name with 'vmkeep restore {name} --as {name}={name}-restored'"
        )


def elsewhere(request: Request) -> Elsewhere:
    """Return what a restore is to put elsewhere than it was."""
    return Elsewhere(request.networks, request.storage)


def create(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Create the VM as it was when it was saved."""
    (name,) = step.vms
    point = run.point(name)
    changes = run.hypervisor_of(name).create(
        run.target(name),
        point.definition,
        overwrite=run.request.overwrite,
        elsewhere=elsewhere(run.request),
    )
    written = {one.component for one in run.plan.steps.values() if one.vms == step.vms and one.component}
    along = sorted(set(point.components) - written)
    also = f"; with its disks come {', '.join(along)}" if along else ""
    copy = "" if run.request.repository in {None, PRIMARY} else f" (from copy {run.request.repository})"
    return StepReport(f"as in {point.session} of {point.taken}{copy}{also}", details=lines(changes))


def write(run: Run, step: Step, progress: Callable[[int], None]) -> StepReport:
    """Write one component into the VM: all of it or nothing."""
    (name,) = step.vms
    component = step.component or ""
    point = run.point(name)
    saved = point.components.get(component)
    if saved is None:
        why = point.missing.get(component, "it was not part of that backup")
        raise NotFoundError(f"VM {name}: recovery point {point.session} has no {component}: {why}")
    if run.request.disks:
        chosen = {name: ref for name, ref in saved.disks.items() if name in run.request.disks}
        saved = dataclasses.replace(saved, disks=chosen)
    written = reused = 0

    def count(size: int) -> None:
        nonlocal written
        written += size
        progress(size)

    def reuse(size: int) -> None:
        nonlocal reused
        reused += size

    open_component(name, run.file.fleet.vms[name], component).restore(
        RestoreContext(
            name=run.target(name),
            component=component,
            hypervisor=run.hypervisor_of(name),
            reader=run.repository,
            scratch=run.scratch(name),
            progress=count,
            reused=reuse,
        ),
        saved,
    )
    there = f", of which its disks held {format_size(reused)}" if reused else ""
    return StepReport(f"{format_size(written)} written{there}", read=written)


def start(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Power the VM on."""
    (name,) = step.vms
    run.hypervisor_of(name).start(run.target(name))
    return StepReport("started")


def health(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Check the VM; its dependents wait for it.

    One that was started passes its gates. One that cannot be started here is checked as it lies: images,
    file systems, databases.
    """
    (name,) = step.vms
    vm, target, hypervisor = run.file.fleet.vms[name], run.target(name), run.hypervisor_of(name)
    if f"start {name}" not in run.plan.steps:
        found = check_images(hypervisor, target, vm)
    else:
        base = run.file.path.absolute().parent
        with Subject(target, vm, hypervisor, base, original=target == name) as subject:
            found = pass_gates(subject, Clock(wait=run.cancelled.wait))
    return StepReport(f"healthy: {len(found)} check(s) passed", details=found)


def release(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Let go of what the restore held open."""
    for name in step.vms:
        run.close_files(name)
        if f"serve {name}" in run.plan.steps:
            hypervisor = run.file.fleet.vms[name].hypervisor
            replaced.abandon(serving.folder_of(run.file, hypervisor, run.target(name)), run.id)
    return StepReport("released")
