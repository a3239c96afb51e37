"""What dead runs left behind: frozen guests, snapshots, mounts, files, VMs without their server, drills."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from vmkeep.disks import scratch
from vmkeep.errors import IntegrityError, NotFoundError, VmkeepError
from vmkeep.operations import freeze, kept_points, replaced, serving, steps
from vmkeep.operations.run import Run, dead_runs
from vmkeep.operations.state import state_folder
from vmkeep.planning import Outcome, State, Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.fleet import FleetFile


def reap(file: FleetFile) -> list[str]:
    """Undo what dead runs of a fleet left here, in guests and on hypervisors.

    Returns:
        One sentence for each thing that could not be undone now; the next call tries again.
    """
    fleet = file.fleet.fleet
    scratch.reap()
    for ended in (state_folder(fleet) / "runs").glob(".*"):
        shutil.rmtree(ended, ignore_errors=True)
    unreadable: list[str] = []
    undone = [trouble for run in _dead(fleet, unreadable) for trouble in _undo(run)]
    return [*undone, *unreadable, *_serve(file)]


def _serve(file: FleetFile) -> Iterator[str]:
    """Start the servers again that VMs need and that were killed; let go what no VM needs."""
    serving.clear(file)
    strange: list[VmkeepError] = []
    for one in serving.all_of(file, unreadable=strange.append):
        if serving.is_begun(one) or (serving.is_alive(one.folder) and not replaced.is_there(one.folder)):
            continue
        try:
            one = replaced.settle(one)  # noqa: PLW2901  (what the VM is of)
            if one.streams().behind(one.target):
                serving.ensure(one)
            else:
                serving.let_go(one)
        except NotFoundError:
            continue  # its server has seen it through meanwhile
        except VmkeepError as error:
            yield f"VM {one.target} needs a server of its recovery point, and has none: {error}"
    yield from map(str, strange)


def _dead(fleet: str, unreadable: list[str]) -> Iterator[Run]:
    for folder in dead_runs(fleet):
        if not (folder / "run.json").exists():
            continue
        try:
            dead = Run.reopen(folder)
        except IntegrityError as error:
            unreadable.append(str(error))
            continue
        except VmkeepError:  # another process clears it away, or its fleet file is gone
            continue
        with dead:
            yield dead
            if dead.plan.operation == "drill" and torn_down(dead):
                kept_points.let_go(dead)
                dead.forget()


def left_by_drills(fleet: str) -> list[str]:
    """Return the runs of drills that died, and of which something may be there still."""
    return [dead.id for dead in _dead(fleet, []) if dead.plan.operation == "drill" and not torn_down(dead)]


def torn_down(dead: Run) -> bool:
    """Tell whether nothing of a drill is left."""
    outcomes = dead.outcomes()
    return all(
        step.id in outcomes and outcomes[step.id].state is State.SUCCEEDED
        for step in dead.plan.steps.values()
        if step.verb is Verb.REMOVE
    )


def _undo(dead: Run) -> Iterator[str]:
    if dead.plan.operation == "drill":
        yield from _tear_down(dead)
        return
    for group in dict.fromkeys([*dead.taken.groups(), *dead.taken.held()]):
        members = {vm for one in dead.taken.of_group(group) for vm in one.machines}
        if not {*members, *dead.taken.held().get(group, [])} <= {*dead.file.fleet.vms}:
            continue  # the fleet file does not say any more where such a VM is
        try:
            freeze.undo(dead, group)
        except VmkeepError as error:
            yield f"what run {dead.id} left of group {group} could not be undone: {error}"
            continue
        if f"snapshot {group}" in dead.outcomes():
            dead.remember(
                f"snapshot {group}", Outcome.failed("its snapshot was dropped when another run began")
            )


def _tear_down(dead: Run) -> Iterator[str]:
    """Remove what a drill created, in the order of its plan; what was removed already does no harm."""
    for step in dead.plan.order():
        if step.verb is not Verb.REMOVE:
            continue
        try:
            steps.perform(dead, step.id, lambda _: None)
        except (VmkeepError, KeyError) as error:  # KeyError: the fleet file does not say any more where it is
            yield f"'{step.id}' of drill {dead.id} could not be done: {error}"
        else:
            dead.remember(step.id, Outcome.succeeded())
