"""The driver `vsphere`: VMs of VMware vCenter or of one ESXi host, running or not."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vmkeep.disks import scratch
from vmkeep.errors import SourceError, TemporaryError
from vmkeep.hypervisors.base import AS_IT_WAS, Change, Snapshot
from vmkeep.hypervisors.vsphere import inventory
from vmkeep.hypervisors.vsphere.capture import Capture
from vmkeep.hypervisors.vsphere.configure import Configure
from vmkeep.hypervisors.vsphere.drill import Drill
from vmkeep.hypervisors.vsphere.places import Places
from vmkeep.hypervisors.vsphere.restore import Restore
from vmkeep.hypervisors.vsphere.tools import VmwareTools

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmkeep.disks.device import DiskSource, DiskTarget, Extent, Image
    from vmkeep.fleet.model import VM
    from vmkeep.guests.base import AgentChannel
    from vmkeep.hypervisors.base import Capacity, Elsewhere, Found, MachineState, Orphan
    from vmkeep.hypervisors.vsphere.connection import Connection

_STOP_S: Final = 120.0
_POLL_S: Final = 0.5


class VsphereHypervisor:
    """The VMs of one datacenter. A disk goes only when another takes its place, or with a drill's VM."""

    driver: Final = "vsphere"
    can_start: Final = True
    streams: Final = None
    kernel_mounts: Final = False

    def __init__(self, name: str, connection: Connection, *, datacenter: str | None = None) -> None:
        """Use a connection; it is made when first needed.

        Args:
            datacenter: Its name; needed where there are several.
        """
        self.name = name
        self._connection = connection
        self._places = Places(connection, datacenter)
        self._configure = Configure(self._places)
        self._capture = Capture(self._places)
        self._restore = Restore(self._places, self._capture)
        self._drills = Drill(self._places, self._restore.holders)

    def unsupported(self, name: str, vm: VM) -> Sequence[str]:
        """Return one sentence for each declared thing that this driver does not do."""
        return [
            f"VM {name}: {what} is not supported by driver vsphere (hypervisor {self.name}): {advice}"
            for what, advice in self._configure.unsupported(vm)
        ]

    def inventory(self) -> Sequence[Found]:
        """Return all VMs of the datacenter; no templates."""
        return inventory.machines(self._places)

    def capacity(self) -> Capacity:
        """Return what the hosts and datastores of the datacenter have."""
        return inventory.capacity(self._places)

    def exists(self, name: str) -> bool:
        """Tell whether there is a VM of that name."""
        return self._places.find(name) is not None

    def configure(self, name: str, vm: VM, *, apply: bool) -> Sequence[Change]:
        """Return the differences between declared and actual; carry them out if *apply*."""
        return self._configure.reconcile(name, vm, apply=apply)

    def prepare(
        self,
        group: str,
        vms: Mapping[str, VM],
        *,
        owner: str = "",
        marks: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    ) -> Snapshot:
        """Look what the VMs are, remove what dead runs left, and let changes be tracked."""
        scratch.reap()
        known = marks or {}
        machines = {
            name: self._capture.prepare(name, vm, owner=owner, marks=known.get(name, {}))
            for name, vm in vms.items()
        }
        return Snapshot(group, "", "powered-off", machines)

    def take(self, prepared: Snapshot) -> Snapshot:
        """Take the snapshots of all VMs at once."""
        taken = datetime.now(UTC).isoformat(timespec="milliseconds")
        machines = self._capture.take(prepared.machines)
        live = any(machine.running for machine in machines.values())
        return replace(
            prepared, taken=taken, machines=machines, consistency="crash" if live else "powered-off"
        )

    def snapshot(self, group: str, vms: Mapping[str, VM]) -> Snapshot:
        """Prepare and take a snapshot at once."""
        return self.take(self.prepare(group, vms))

    def open_disk(self, machine: MachineState, disk: str) -> DiskSource:
        """Open a disk as it was at the snapshot."""
        return self._capture.open_disk(machine, disk)

    def changed(self, machine: MachineState, disk: str, since: str) -> Sequence[Extent] | None:
        """Return what vSphere says has changed since a mark."""
        return self._capture.changed(machine, disk, since)

    def release(self, snapshot: Snapshot) -> None:
        """Remove the snapshots."""
        for machine in snapshot.machines.values():
            self._capture.release(machine)

    def require_place(self, elsewhere: Elsewhere) -> None:
        """Check that the networks and the datastore are there."""
        if elsewhere.networks:
            self._places.require_networks([*elsewhere.networks.values()])
        if elsewhere.storage is not None:
            self._places.require_datastore(elsewhere.storage)

    def create(
        self,
        name: str,
        definition: str,
        *,
        overwrite: bool,
        drill: str | None = None,
        elsewhere: Elsewhere = AS_IT_WAS,
    ) -> Sequence[Change]:
        """Create the VM, for a restore; disks that are there stay as they are."""
        return self._restore.create(name, definition, overwrite=overwrite, drill=drill, elsewhere=elsewhere)

    def create_disk(self, name: str, disk: str, *, size: int, format: str) -> DiskTarget:  # noqa: A002, ARG002
        """Open an image here; it is sent in by `commit_disks`, whatever its format was elsewhere."""
        return self._restore.create_disk(name, disk, size)

    def commit_disks(self, name: str, disks: Sequence[str]) -> None:
        """Send new disks in, and put them in place, all or none."""
        self._restore.commit_disks(name, disks)

    def discard_disks(self, name: str, disks: Sequence[str]) -> None:
        """Remove new disks that were not put in place."""
        self._restore.discard_disks(name, disks)

    def isolate(self, drill: str) -> None:
        """Make the isolated network of a drill, on one host."""
        self._drills.isolate(drill)

    def remove(self, name: str, *, drill: str) -> None:
        """Remove a VM of a drill with its disks, running or not."""
        self._drills.remove(name, drill)

    def end_isolation(self, drill: str) -> None:
        """Remove the isolated network of a drill."""
        self._drills.end_isolation(drill)

    def orphans(self) -> Sequence[Orphan]:
        """Return VMs of drills, and new disks, whose makers do not run here any more."""
        return [*self._drills.orphans(), *self._restore.holders.orphans()]

    def images(self, name: str) -> Sequence[Image]:  # noqa: ARG002  (the Protocol's)
        """Return nothing: its disks are no files here."""
        return []

    def is_running(self, name: str) -> bool:
        """Tell whether the VM is powered on, or suspended."""
        there = self._places.find(name)
        return there is not None and self._places.machine(there).running

    def agent(self, name: str) -> AgentChannel:
        """Return what VMware tools tell of the guest of a running VM."""
        there = self._places.require(name)
        if not self._places.machine(there).running:
            raise SourceError(f"VM {name} does not run, so no VMware tools answer")
        return VmwareTools(self._connection, there, name)

    def start(self, name: str) -> None:
        """Power the VM on; one that runs already stays as it is."""
        there = self._places.require(name)
        if not self._places.machine(there).running:
            self._connection.run(f"VM {name}: starting", there.PowerOnVM_Task)

    def stop(self, name: str, *, timeout_s: float = _STOP_S) -> None:
        """Ask the guest to power off, and wait.

        Raises:
            SourceError: no VMware tools run in it, which would do so.
            TemporaryError: it still runs after *timeout_s* seconds.
        """
        there = self._places.require(name)
        machine = self._places.machine(there)
        if not machine.running:
            return
        if not machine.tools:
            raise SourceError(
                f"VM {name}: no VMware tools run in it, which could shut it down: do that in its guest"
            )
        self._connection.call(f"VM {name}: stopping", there.ShutdownGuest)
        deadline = time.monotonic() + timeout_s
        while self._places.machine(there).running:
            if time.monotonic() > deadline:
                raise TemporaryError(
                    f"VM {name} was asked to power off, and still runs after {timeout_s:.0f} s: "
                    "look at it, or power it off in vCenter"
                )
            time.sleep(_POLL_S)
