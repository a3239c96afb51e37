"""Snapshots: vSphere's own of each VM, running or not, with the changes that it tracks.

    vmkeep-shop-20261124T221500Z-1a2b3c4d      ours, of the fleet shop; its description says who made it

A VM that is powered off gets one, too: whatever is written from then on, also when somebody starts the VM,
goes into a file of its own, and what is read stays what it was.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pyVmomi import vim

from vmkeep.disks import maker
from vmkeep.errors import (
    AccessError,
    SourceChangedError,
    SourceError,
    TemporaryError,
    VmkeepError,
)
from vmkeep.hypervisors.base import DiskState, MachineState
from vmkeep.hypervisors.vsphere import changes
from vmkeep.hypervisors.vsphere.machine import SNAPSHOT_PATHS, read
from vmkeep.hypervisors.vsphere.reading import open_disk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmkeep.disks.device import DiskSource, Extent
    from vmkeep.fleet.model import VM
    from vmkeep.hypervisors.vsphere.machine import Disk, Machine
    from vmkeep.hypervisors.vsphere.places import Places

_NAME: Final = re.compile(r"vmkeep-(?P<fleet>.*)-\d{8}T\d{6}Z-[0-9a-f]{8}")
_AT_ONCE: Final = 8
"""How many VMs get their snapshots at the same time."""
_SNAPSHOT_S: Final = 900.0
"""VMware tools give up by themselves after a while; this is longer."""


def new_name(fleet: str) -> str:
    """Return the name of a new snapshot of a fleet."""
    return f"vmkeep-{fleet}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


class Capture:
    """Prepares and takes the snapshots of one vSphere's VMs, and reads them."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._connection = places.connection
        self._exports: dict[str, threading.Lock] = {}
        """By VM: vSphere gives one lease of a VM at a time."""

    def prepare(self, name: str, vm: VM, *, owner: str, marks: Mapping[str, Sequence[str]]) -> MachineState:
        """Look what a VM is, clear away what dead runs left, and let its changes be tracked."""
        there = self._places.require(name)
        machine = self._places.machine(there)
        wanted = _declared(machine, vm)
        remarks = []
        if machine.strange:
            remarks.append(f"what a VM that is created again lacks: {', '.join(machine.strange)}")
        remarks += self._clear(there, machine, owner)
        if not machine.config.get("changeTrackingEnabled"):
            remarks += self._track(there, name)
        states = tuple(_prepared(disk, marks.get(disk.name, ())) for disk in wanted)
        # Where both are declared VMware tools are taken, as agents are elsewhere.
        by_ssh = vm.guest is not None and vm.guest.ssh is not None and not vm.guest.agent
        return MachineState(
            name,
            machine.captured().to_json(),
            states,
            running=machine.running,
            snapshot=new_name(owner),
            stilled=machine.running and machine.tools and not by_ssh,
            remark="; ".join(remarks),
        )

    def take(self, machines: Mapping[str, MachineState]) -> dict[str, MachineState]:
        """Take the snapshots of all at once; when one fails, none stays.

        Raises:
            SourceChangedError: a VM was started or stopped since it was prepared.
            SourceError: a snapshot could not be taken.
        """
        with contextlib.ExitStack() as undo:
            for machine in machines.values():
                undo.callback(self.release, machine)
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="capture") as pool:
                taken = [*pool.map(self._begin, machines.values())]
            undo.pop_all()
        return {machine.vm: machine for machine in taken}

    def release(self, machine: MachineState) -> None:
        """Remove a VM's snapshot; nothing happens when it, or the VM, is not there."""
        there = self._places.find(machine.vm)
        if there is None or not machine.snapshot:
            return
        for one in self._places.machine(there).snapshots:
            if one.name == machine.snapshot:
                self._remove(there, machine.vm, one)

    def open_disk(self, machine: MachineState, disk: str) -> DiskSource:
        """Open a disk as it was at the snapshot."""
        there, snapshot, found = self._held(machine, disk)
        what = f"VM {machine.vm}: disk {disk}"
        with self._exports.setdefault(machine.vm, threading.Lock()):
            return open_disk(self._places, there, snapshot, found, what=what)

    def changed(self, machine: MachineState, disk: str, since: str) -> list[Extent] | None:
        """Return what changed since a mark, or None when it is not known."""
        there, snapshot, found = self._held(machine, disk)
        change = changes.change_of(since, changes.mark(found))
        if not change:
            return None
        try:
            return changes.areas(self._connection, there, snapshot, found, change)
        except (TemporaryError, AccessError):
            raise
        except VmkeepError:
            return None

    def require_alone(self, there: vim.VirtualMachine, machine: Machine) -> None:
        """Remove our own snapshots of a VM whose disks are to be replaced.

        Raises:
            TemporaryError: it is being backed up.
            SourceError: it has a snapshot that is not ours: going back to it would bring the old disks back.
        """
        for one in reversed(machine.snapshots):
            if _NAME.fullmatch(one.name) is None:
                raise SourceError(
                    f"VM {machine.name} has the snapshot {one.name!r}, which holds on to its present disks: "
                    "remove it, or restore under another name"
                )
            made = _maker(one)
            if made != maker.me() and not maker.is_gone(made):
                raise TemporaryError(
                    f"VM {machine.name} is being backed up by {maker.described(made)} (snapshot {one.name}): "
                    "try again when that has ended, or remove the snapshot if it is not at work"
                )
            self._remove(there, machine.name, one)

    def _begin(self, machine: MachineState) -> MachineState:
        there = self._places.require(machine.vm)
        if self._places.machine(there).running != machine.running:
            raise SourceChangedError(f"VM {machine.vm} was started or stopped while it was prepared")
        begun = time.time()
        stilled, remarks = self._snapshot(there, machine)
        ended = time.time()
        snapshot, disks = self._disks(there, machine)
        states = []
        for state in machine.disks:
            disk = disks.get(state.name)
            if disk is None:
                raise SourceError(f"VM {machine.vm}: its snapshot lacks disk {state.name}")
            states.append(self._known(there, snapshot, state, disk))
        return replace(
            machine,
            disks=tuple(states),
            stilled=stilled,
            remark="; ".join(filter(None, [machine.remark, *remarks])),
            begun=begun if machine.running else 0.0,
            ended=ended if machine.running else 0.0,
        )

    def _snapshot(self, there: vim.VirtualMachine, machine: MachineState) -> tuple[bool, list[str]]:
        """Take a snapshot; without the guest standing still if it does not want to."""
        what = f"VM {machine.vm}: snapshot"
        said = json.dumps({"made by": "vmkeep, for a backup", "maker": maker.me()})

        def take(*, quiesce: bool) -> None:
            self._connection.run(
                what,
                lambda: there.CreateSnapshot_Task(
                    name=machine.snapshot, description=said, memory=False, quiesce=quiesce
                ),
                timeout_s=_SNAPSHOT_S,
                cancel=True,
            )

        if machine.stilled:
            try:
                take(quiesce=True)
            except (TemporaryError, AccessError):
                raise
            except VmkeepError as error:
                # Of a failed one something may be left.
                self.release(machine)
                take(quiesce=False)
                return False, [f"VMware tools did not let its guest stand still: {error}"]
            return True, []
        take(quiesce=False)
        return False, []

    def _known(
        self, there: vim.VirtualMachine, snapshot: vim.vm.Snapshot, state: DiskState, disk: Disk
    ) -> DiskState:
        """Return a disk with its mark, and whether its changes since the one that was chosen are known."""
        now = changes.mark(disk)
        taken = replace(state, size=disk.size, mark=now)
        if not state.since:
            return taken
        change = changes.change_of(state.since, now)
        if not change:
            why = "its changes were not tracked all the time: it was restored, or vSphere began to track anew"
            return replace(taken, since="", remark=state.remark or why)
        try:
            changes.areas(self._connection, there, snapshot, disk, change)
        except (TemporaryError, AccessError):
            raise
        except VmkeepError as error:
            return replace(taken, since="", remark=f"its changes are not known: {error}")
        return taken

    def _disks(
        self, there: vim.VirtualMachine, machine: MachineState
    ) -> tuple[vim.vm.Snapshot, dict[str, Disk]]:
        """Return the snapshot of a captured VM, and its disks as they are in it.

        Raises:
            SourceChangedError: it is not there any more.
        """
        tree = self._places.machine(there).snapshots
        snapshot = next((one.snapshot for one in tree if one.name == machine.snapshot), None)
        if snapshot is None:
            raise SourceChangedError(
                f"VM {machine.vm}: its snapshot {machine.snapshot} was dropped: back it up again"
            )
        found = self._connection.props([snapshot], SNAPSHOT_PATHS).get(snapshot, {})
        return snapshot, {disk.name: disk for disk in read(found, {}, name=machine.vm).disks}

    def _held(self, machine: MachineState, disk: str) -> tuple[vim.VirtualMachine, vim.vm.Snapshot, Disk]:
        there = self._places.require(machine.vm)
        snapshot, disks = self._disks(there, machine)
        if disk not in disks:
            raise SourceError(f"VM {machine.vm}: disk {disk} is not in the snapshot")
        return there, snapshot, disks[disk]

    def _clear(self, there: vim.VirtualMachine, machine: Machine, owner: str) -> list[str]:
        """Remove the snapshots that dead runs of a fleet left; say which may be such."""
        told = []
        for one in reversed(machine.snapshots):
            match = _NAME.fullmatch(one.name)
            if match is None or match["fleet"] != owner or not owner:
                continue
            made = _maker(one)
            if maker.is_gone(made):
                self._remove(there, machine.name, one)
            elif not maker.is_at_work(made):
                told.append(
                    f"snapshot {one.name} was made by {maker.described(made)}, which is not seen from here: "
                    "remove it if that is not at work"
                )
        return told

    def _remove(self, there: vim.VirtualMachine, name: str, one: vim.vm.SnapshotTree) -> None:
        what = f"VM {name}: removing snapshot {one.name}"
        try:
            self._connection.run(
                what, lambda: one.snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True)
            )
        except VmkeepError:
            # It may be gone though its disks are not: then they are what is left to do.
            if any(left.snapshot == one.snapshot for left in self._places.machine(there).snapshots):
                raise
        if self._connection.prop(there, "runtime.consolidationNeeded"):
            self._connection.run(f"VM {name}: consolidating its disks", there.ConsolidateVMDisks_Task)

    def _track(self, there: vim.VirtualMachine, name: str) -> list[str]:
        """Let vSphere track changes from the next snapshot on."""
        spec = vim.vm.ConfigSpec(changeTrackingEnabled=True)
        try:
            self._connection.run(f"VM {name}: tracking of changes", lambda: there.ReconfigVM_Task(spec))
        except TemporaryError:
            raise
        except VmkeepError as error:
            return [f"its disks are read in full each time, for their changes are not tracked: {error}"]
        return []


def _declared(machine: Machine, vm: VM) -> list[Disk]:
    """Return the disks that are declared.

    Raises:
        SourceError: one is not there, or snapshots leave it out.
    """
    missing = [disk.name for disk in vm.disks if machine.disk(disk.name) is None]
    if missing:
        there = ", ".join(disk.name for disk in machine.disks) or "none"
        raise SourceError(
            f"VM {machine.name} has no disk {', '.join(missing)} (it has: {there}); "
            "`vmkeep configure` creates it"
        )
    found = [disk for one in vm.disks if (disk := machine.disk(one.name))]
    for disk in found:
        if disk.unsaved:
            raise SourceError(f"VM {machine.name}: disk {disk.name} cannot be saved: {disk.unsaved}")
    return found


def _prepared(disk: Disk, marks: Sequence[str]) -> DiskState:
    same = [one for one in marks if one.partition("/")[0] == disk.uuid]
    why = "it is another disk than the one that was saved" if marks and not same else ""
    return DiskState(disk.name, "", "vmdk", disk.size, disk.size, since=same[0] if same else "", remark=why)


def _maker(one: vim.vm.SnapshotTree) -> str:
    try:
        said = json.loads(one.description)
    except ValueError:
        return ""
    return str(said.get("maker", "")) if isinstance(said, dict) else ""
