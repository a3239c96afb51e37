"""The steps of a backup: snapshot, save, upload, release, seal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkeep.components.base import SaveContext
from vmkeep.components.open import open_component
from vmkeep.errors import PartialError, SourceError
from vmkeep.operations.report import StepReport
from vmkeep.repository import Point
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.operations.run import Run
    from vmkeep.planning import Step
    from vmkeep.repository import SavedComponent


def snapshot(run: Run, step: Step, _progress: Callable[[int], None]) -> StepReport:
    """Capture all VMs of the group at one moment."""
    by_hypervisor: dict[str, dict[str, str]] = {}
    for name in step.vms:
        by_hypervisor.setdefault(run.file.fleet.vms[name].hypervisor, {})[name] = name
    taken = []
    for names in by_hypervisor.values():
        declared = {name: run.file.fleet.vms[name] for name in names}
        taken.append(run.hypervisor_of(next(iter(names))).snapshot(step.group or step.vms[0], declared))
        # After each, so that a crash leaves none that is not written down.
        run.keep_snapshot(taken)
    return StepReport(f"{len(step.vms)} VM(s), {taken[0].consistency}, {taken[0].taken}")


def save(run: Run, step: Step, progress: Callable[[int], None]) -> StepReport:
    """Save one component into the VM's session."""
    (name,), component = step.vms, _component(step)
    session = run.session(name)
    parent = run.parent(name, component)
    saved = open_component(name, run.file.fleet.vms[name], component).save(
        SaveContext(
            name=name,
            vm=run.file.fleet.vms[name],
            component=component,
            hypervisor=run.hypervisor_of(name),
            machine=run.machine(name),
            writer=session,
            files=run.files(name),
            scratch=run.scratch(name),
            parent=parent.components.get(component) if parent else None,
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
    for taken in run.snapshots(step.group or step.vms[0]):
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
    taken = run.snapshot_of(name)
    parents = [parent.session for component in saved if (parent := run.parent(name, component))]
    return Point(
        vm=name,
        session=run.session(name).id,
        run=run.id,
        fleet=run.file.fleet.fleet,
        taken=taken.taken,
        sealed=datetime.now(UTC).isoformat(timespec="milliseconds"),
        group=taken.group,
        consistency=taken.consistency,
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
Or, into the hypervisor that it came from, with all that depends on it:
  vmkeep rescue STORE --key-file FILE show {vm} --only fleet-file > fleet.yaml
  (adapt repository.store and repository.key in it)
  vmkeep restore {vm} --fleet fleet.yaml --direct
docs/format.md of vmkeep describes every byte, for a reader of your own.
"""
