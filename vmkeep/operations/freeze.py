"""All VMs of a consistency group at one moment.

    prepare   pre hooks   freeze              take   thaw                 post hooks
              dependents  dependents,         all    dependencies,        dependencies
              first       then dependencies          then dependents      first

A group that could not stand still is captured all the same, and only as after a power failure: `crash`.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from vmkeep import fleet as fleets
from vmkeep.components.whole_disks import mark_of
from vmkeep.errors import TemporaryError, VmkeepError
from vmkeep.guests.open import open_guest
from vmkeep.operations.stillness import Stillness

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from vmkeep.fleet import Fleet
    from vmkeep.guests.base import Guest
    from vmkeep.hypervisors.base import Hypervisor, Snapshot
    from vmkeep.operations.run import Run

_HOOK_S: Final = 300.0
"""How long the command of a hook may take."""
_FREEZE_S: Final = 10.0
"""How long a VM without a group may stand still."""


def capture(run: Run, group: str, vms: Sequence[str]) -> list[Snapshot]:
    """Take the snapshots of a group, one for each hypervisor that its VMs run on.

    Each is written down before it is taken; whatever dies in between is undone by who comes next.

    Raises:
        SourceError: a VM cannot be captured.
        TemporaryError: a guest could not be thawed; a second call tries again.
    """
    undo(run, group)
    prepared = _prepare(run, group, vms)
    live = [vm for one in prepared for vm, machine in one.machines.items() if machine.running]
    if not live:
        taken = [_driver(run, one).take(one) for one in prepared]
        run.taken.keep(group, taken)
        return taken
    # Those that their hypervisor holds still need nothing from us.
    stilled = {vm for one in prepared for vm, machine in one.machines.items() if machine.stilled}
    asked = [vm for vm in live if vm not in stilled]
    run.taken.hold(group, asked)
    with _guests(run, asked) as (guests, unopened):
        waves = waves_of(run.file.fleet, guests)
        still = Stillness(guests, waves, _limit(run.file.fleet, group))
        hooked, troubles = _before(run, guests, waves)
        try:
            taken = _take_still(run, prepared, still)
        finally:
            troubles += _after(run, guests, waves, hooked)
    if still.stuck:
        told = "; ".join(f"VM {vm} could not be thawed: {error}" for vm, error in still.stuck.items())
        raise TemporaryError(f"{told}; it thaws by itself after a while, or log in and run 'fsfreeze -u'")
    run.taken.let_go(group)
    remarks = [*_not_still(taken, guests, unopened)]
    held = not remarks and not still.remarks
    consistency = ("application" if hooked and not troubles else "filesystem") if held else "crash"
    told_all = (*remarks, *still.remarks, *troubles)
    taken = [_described(one, consistency, still.longest, told_all) for one in taken]
    run.taken.keep(group, taken)
    return taken


def _not_still(
    taken: Sequence[Snapshot], opened: Container[str], unopened: Mapping[str, VmkeepError]
) -> Iterator[str]:
    """Yield why VMs did not stand still, or not at the moment at which the others did."""
    for vm, error in unopened.items():
        yield f"VM {vm} runs, and its file systems could not be frozen: {error}"
    live = {vm: machine for one in taken for vm, machine in one.machines.items() if machine.running}
    for vm, machine in live.items():
        if vm not in opened and vm not in unopened and not machine.stilled:
            yield f"VM {vm} runs, and its hypervisor could not hold its file systems still"
        elif machine.stilled and len(live) > 1:
            yield (
                f"VM {vm} was held still by its hypervisor for a snapshot of its own, not as long as the "
                "others: declare guest: {ssh: {host: ...}}, so that all of them stand still at one moment"
            )


def undo(run: Run, group: str) -> None:
    """Release the snapshots of a group that an earlier try left, and let its guests go.

    Raises:
        TemporaryError: a guest cannot be reached; it stays noted.
    """
    for snapshot in run.taken.of_group(group):
        _driver(run, snapshot).release(snapshot)
    run.taken.drop(group)
    let_go(run, group)


def let_go(run: Run, group: str) -> None:
    """Thaw the guests of a group that somebody left frozen, and end their hooks.

    Raises:
        TemporaryError: a guest cannot be reached; it stays noted.
    """
    left = run.taken.held().get(group, [])
    running = [vm for vm in left if run.hypervisor_of(vm).is_running(vm)]
    with _guests(run, running) as (guests, unopened):
        for error in unopened.values():
            if isinstance(error, TemporaryError):  # of the others none can have been frozen by us
                raise error
        for guest in guests.values():
            guest.thaw()
        waves = waves_of(run.file.fleet, guests)
        _after(run, guests, waves, {vm for vm in guests if _hooks(run, vm, "pre")})
    run.taken.let_go(group)


def waves_of(fleet: Fleet, vms: Mapping[str, object]) -> list[list[str]]:
    """Return VMs in the order in which they are frozen: each before what it depends on."""
    needed_by = fleets.dependencies_among(fleet, vms)
    left = [*needed_by]
    waves = []
    while left:
        still_needed = {one for vm in left for one in needed_by[vm]}
        waves.append([vm for vm in left if vm not in still_needed])
        left = [vm for vm in left if vm in still_needed]
    return waves


def _prepare(run: Run, group: str, vms: Sequence[str]) -> list[Snapshot]:
    """Prepare the snapshots, with the marks of the recovery points that they can build on; note each."""
    by_hypervisor: dict[str, list[str]] = {}
    for vm in vms:
        by_hypervisor.setdefault(run.file.fleet.vms[vm].hypervisor, []).append(vm)
    prepared: list[Snapshot] = []
    for names in by_hypervisor.values():
        prepared.append(
            run.hypervisor_of(names[0]).prepare(
                group,
                {name: run.file.fleet.vms[name] for name in names},
                owner=run.file.fleet.fleet,
                marks={name: _marks(run, name) for name in names},
            )
        )
        run.taken.keep(group, prepared)
    return prepared


def _marks(run: Run, vm: str) -> dict[str, list[str]]:
    """Return the marks that recovery points know, by disk, newest first."""
    found: dict[str, list[str]] = {}
    for component in run.selected(vm):
        for point in run.parents(vm, component):
            for disk in point.components[component].disks:
                mark = mark_of(point.components[component], disk)
                if mark:
                    found.setdefault(disk, []).append(mark)
    return found


def _take_still(run: Run, prepared: Sequence[Snapshot], still: Stillness) -> list[Snapshot]:
    try:
        still.freeze()
        with ThreadPoolExecutor(len(prepared), thread_name_prefix="take") as pool:
            taken = [*pool.map(lambda one: _driver(run, one).take(one), prepared)]
        still.moment_is_over()
        return taken
    finally:
        still.thaw()


@contextlib.contextmanager
def _guests(run: Run, vms: Sequence[str]) -> Iterator[tuple[dict[str, Guest], dict[str, VmkeepError]]]:
    """Open the guests of running VMs; yields them, and why others could not be opened."""
    guests: dict[str, Guest] = {}
    unopened: dict[str, VmkeepError] = {}
    base = run.file.path.absolute().parent
    with contextlib.ExitStack() as stack:
        for vm in vms:
            try:
                channel = partial(run.hypervisor_of(vm).agent, vm)
                guest = open_guest(vm, run.file.fleet.vms[vm], channel, base=base)
            except VmkeepError as error:
                unopened[vm] = error
                continue
            guests[vm] = stack.enter_context(guest)
        yield guests, unopened


def _before(
    run: Run, guests: Mapping[str, Guest], waves: Sequence[Sequence[str]]
) -> tuple[set[str], list[str]]:
    """Run the hooks before the snapshot; return the VMs that have some, and what went wrong."""
    hooked = {vm for vm in guests if _hooks(run, vm, "pre")}
    order = [vm for wave in waves for vm in wave if vm in hooked]
    return hooked, [trouble for vm in order for trouble in _run_hooks(run, vm, guests[vm], "pre")]


def _after(
    run: Run, guests: Mapping[str, Guest], waves: Sequence[Sequence[str]], hooked: set[str]
) -> list[str]:
    """Run the hooks after the snapshot, also where the ones before it failed half-way."""
    order = [vm for wave in reversed(waves) for vm in wave if vm in hooked or _hooks(run, vm, "post")]
    return [trouble for vm in order for trouble in _run_hooks(run, vm, guests[vm], "post")]


def _run_hooks(run: Run, vm: str, guest: Guest, when: str) -> Iterator[str]:
    for name, command in _hooks(run, vm, when):
        where = f"VM {vm}: applications.{name}.{when}: {command!r}"
        try:
            done = guest.run(["/bin/sh", "-c", command], timeout_s=_HOOK_S)
        except VmkeepError as error:
            yield f"{where}: {error}"
            continue
        if done.code != 0:
            words = done.err.decode("utf-8", "replace").strip()[-300:]
            yield f"{where} ended with {done.code}{': ' + words if words else ''}"


def _hooks(run: Run, vm: str, when: str) -> list[tuple[str, str]]:
    """Return the commands of a VM's applications, each with the application's name."""
    applications = run.file.fleet.vms[vm].components.applications
    return [(name, command) for name, one in applications.items() for command in getattr(one, when)]


def _described(snapshot: Snapshot, consistency: str, frozen: float, remarks: tuple[str, ...]) -> Snapshot:
    if not any(machine.running for machine in snapshot.machines.values()):
        return snapshot
    return replace(snapshot, consistency=consistency, frozen=frozen, remarks=remarks)


def _limit(fleet: Fleet, group: str) -> float:
    declared = fleet.consistency_groups.get(group)
    return declared.max_freeze if declared is not None else _FREEZE_S


def _driver(run: Run, snapshot: Snapshot) -> Hypervisor:
    return run.hypervisor_of(next(iter(snapshot.machines)))
