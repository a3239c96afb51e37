"""The step `configure`: a VM is, or becomes, what the fleet file declares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.errors import InputError, SourceError
from vmkeep.operations.report import StepReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmkeep.hypervisors.base import Change
    from vmkeep.operations.run import Run
    from vmkeep.planning import Step


def apply(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Create the VM, or change what differs; never shrink or delete a disk."""
    (name,) = step.vms
    changes = run.hypervisor_of(name).configure(name, run.file.fleet.vms[name], apply=True)
    return StepReport(_told(changes, none="is as declared"), details=lines(changes))


def check(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Before a backup: the VM must be there; a difference to what is declared is told, not changed."""
    (name,) = step.vms
    hypervisor = run.hypervisor_of(name)
    if not hypervisor.exists(name):
        raise SourceError(
            f"VM {name} does not exist on hypervisor {run.file.fleet.vms[name].hypervisor}: "
            f"create it with 'vmkeep configure {name}', or correct its name in {run.file.path}"
        )
    try:
        changes = hypervisor.configure(name, run.file.fleet.vms[name], apply=False)
    except InputError as error:
        # The fleet file is wrong about it, for instance about a disk's size: save it as it is.
        return StepReport(f"differs from the fleet file: {error}", details=(str(error),))
    return StepReport(_told(changes, none="is as declared"), details=lines(changes))


def _told(changes: Sequence[Change], *, none: str) -> str:
    if not changes:
        return none
    what = "changed" if changes[0].applied else "differs from the fleet file"
    return f"{what}: {', '.join(change.what for change in changes)}"


def lines(changes: Sequence[Change]) -> tuple[str, ...]:
    """Return a difference in a line each."""
    return tuple(map(_line, changes))


def _line(one: Change) -> str:
    later = " (when it is started the next time)" if one.pending else ""
    if one.actual is None:
        return f"+ {one.what}: {one.declared}{later}"
    return f"~ {one.what}: {one.actual} -> {one.declared}{later}"
