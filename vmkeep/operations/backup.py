"""The steps of a backup: snapshot, save, upload, release, seal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkeep.components.base import SaveContext
from vmkeep.components.open import open_component
from vmkeep.components.whole_disks import doubts
from vmkeep.errors import PartialError, SourceError
from vmkeep.operations import freeze
from vmkeep.operations.report import StepReport
from vmkeep.operations.windows import require_open
from vmkeep.repository import Point
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmkeep.hypervisors.base import Snapshot
    from vmkeep.operations.run import Run
    from vmkeep.planning import Step
    from vmkeep.repository import SavedComponent


def snapshot(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Capture all VMs of the group at one moment; not any more when the window has closed meanwhile."""
    require_open(run.file.fleet, run.request)
    taken = freeze.capture(run, step.group or step.vms[0], step.vms)
    live = [one for one in taken if any(machine.running for machine in one.machines.values())]
    remarks = tuple(dict.fromkeys(remark for one in live for remark in one.remarks))
    first = (live or taken)[0]
    text = f"{len(step.vms)} VM(s), {first.consistency}, {first.taken}"
    if live:
        skew = max(one.skew for one in live)
        text += f", stood still {first.frozen:.2f} s, captured within {skew:.2f} s"
    if first.consistency == "crash":
        text = f"ONLY CRASH-CONSISTENT: {'; '.join(remarks)}; {text}"
    return StepReport(text, details=(*remarks, *_not_captured(taken), *_unknown_changes(taken)))


def _not_captured(taken: Sequence[Snapshot]) -> Iterator[str]:
    """Yield what beside the disks is missing of the VMs."""
    for one in taken:
        for name, machine in one.machines.items():
            if machine.remark:
                yield f"VM {name}: {machine.remark}"


def _unknown_changes(taken: Sequence[Snapshot]) -> Iterator[str]:
    """Yield why disks are read in full though they were saved before."""
    for one in taken:
        for name, machine in one.machines.items():
            for disk in machine.disks:
                if disk.remark:
                    yield f"VM {name}: disk {disk.name} is read in full: {disk.remark}"


def save(run: Run, step: Step, progress: Callable[[int], None]) -> StepReport:
    """Save one component into the VM's session."""
    (name,), component = step.vms, _component(step)
    session = run.session(name)
    saved = open_component(name, run.file.fleet.vms[name], component).save(
        SaveContext(
            name=name,
            vm=run.file.fleet.vms[name],
            component=component,
            hypervisor=run.hypervisor_of(name),
            machine=run.taken.machine(name),
            writer=session,
            files=run.files(name),
            scratch=run.scratch(name),
            parents=[point.components[component] for point in run.parents(name, component)],
            progress=progress,
        )
    )
    run.files(name).check_unchanged()  # what was read through it is no recovery point if it did
    session.record(saved)
    cost = saved.stats
    return StepReport(
        f"read {format_size(cost.read)}, new {format_size(cost.new)}, stored {format_size(cost.stored)}",
        read=cost.read,
        new=cost.new,
        stored=cost.stored,
        details=tuple(f"VM {name}: {doubt}" for doubt in doubts(saved)),
    )


def upload(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Put what the component made into the store; what is there already is not sent again."""
    (name,) = step.vms
    run.session(name).upload(_component(step))
    return StepReport("in the store")


def release(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Drop the group's snapshots, after a failure too."""
    for name in step.vms:
        run.close_files(name)
    for taken in run.taken.of_group(step.group or step.vms[0]):
        run.hypervisor_of(next(iter(taken.machines))).release(taken)
    return StepReport("released")


def seal(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Make the recovery point exist, with all that was saved; or void the session when nothing was.

    Raises:
        PartialError: a component is missing from the point.
        SourceError: nothing was saved.
        TemporaryError: the store is away; the session stays open, and a run that is continued seals it.
    """
    (name,) = step.vms
    declared = run.selected(name)
    if not run.has_session(name):
        why = "; ".join(dict.fromkeys(run.reason_missing(name, one) for one in declared))
        raise SourceError(f"VM {name}: no recovery point was made, for nothing was saved: {why}")
    session = run.session(name)
    recorded = session.recorded()
    saved: dict[str, SavedComponent] = {
        component: recorded[component]
        for component in declared
        if component in recorded and run.saved_now(name, component)
    }
    for component in saved:
        session.upload(
            component
        )  # what an upload could not finish: a point without it would decide too early
    missing = {one: run.reason_missing(name, one) for one in declared if one not in saved}
    if not saved:
        why = "; ".join(f"{component}: {reason}" for component, reason in missing.items())
        session.void(why)
        run.end_session(name)
        raise SourceError(f"VM {name}: no recovery point was made, for nothing was saved: {why}")
    point = session.seal(_point(run, name, saved, missing))
    run.end_session(name)
    if missing:
        told = "; ".join(f"{component}: {reason}" for component, reason in missing.items())
        raise PartialError(f"VM {name}: recovery point {point.session} is PARTIAL, it lacks {told}")
    cost = point.stats
    return StepReport(
        f"{point.session}: {len(saved)} component(s), {format_size(cost.stored)} stored",
        read=cost.read, new=cost.new, stored=cost.stored,
    )  # fmt: skip


def _component(step: Step) -> str:
    if step.component is None:
        raise ValueError(f"step {step.id} names no component")
    return step.component


def _point(run: Run, name: str, saved: dict[str, SavedComponent], missing: dict[str, str]) -> Point:
    taken = run.taken.of(name)
    parents = [parents[0].session for component in saved if (parents := run.parents(name, component))]
    return Point(
        vm=name,
        session=run.session(name).id,
        run=run.id,
        fleet=run.file.fleet.fleet,
        taken=taken.taken,
        sealed=datetime.now(UTC).isoformat(timespec="milliseconds"),
        group=taken.group,
        consistency=taken.consistency,
        frozen=round(taken.frozen, 3),
        skew=round(taken.skew, 3),
        remarks=(
            *taken.remarks,
            *filter(None, [taken.machines[name].remark]),
            *(doubt for component in saved.values() for doubt in doubts(component)),
        ),
        definition=taken.machines[name].definition,
        components=saved,
        missing=missing,
        parent=max(parents, default=None),
        instructions=_INSTRUCTIONS.format(vm=name, fleet=run.file.fleet.fleet),
        fleet_file=run.file.text,
    )


_INSTRUCTIONS = """\
This is a recovery point of VM {vm} of fleet {fleet}, made by vmkeep (Apache-2.0).
To restore it: install vmkeep, and run, with where this repository and its key are now,
  vmkeep rescue STORE --key-file FILE restore {vm} --to FOLDER
  (--kms ARN for a key in AWS KMS; neither asks for a passphrase)
Or, into the hypervisor that it came from, with all that depends on it:
  vmkeep rescue STORE --key-file FILE show {vm} --only fleet-file > fleet.yaml
  (adapt repository.store and repository.key in it)
  vmkeep restore {vm} --fleet fleet.yaml --direct
docs/format.md of vmkeep describes every byte, for a reader of your own.
"""
