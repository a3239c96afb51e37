"""The driver `libvirt`: VMs of QEMU/KVM, running or not."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.disks import images, scratch
from vmkeep.disks.device import Image
from vmkeep.disks.nbd_device import NbdDevice
from vmkeep.errors import SourceError, TemporaryError
from vmkeep.hypervisors.base import AS_IT_WAS, Change, MachineState, Snapshot
from vmkeep.hypervisors.libvirt import backup_job, belongings, inventory, pools
from vmkeep.hypervisors.libvirt.agent import LibvirtAgent
from vmkeep.hypervisors.libvirt.capture import Capture, path_of
from vmkeep.hypervisors.libvirt.configure import Configure, require_networks
from vmkeep.hypervisors.libvirt.connection import shared, translated
from vmkeep.hypervisors.libvirt.drill import Drill
from vmkeep.hypervisors.libvirt.machine import parse, read
from vmkeep.hypervisors.libvirt.restore import Restore
from vmkeep.hypervisors.libvirt.streams import LibvirtStreams
from vmkeep.hypervisors.still import find_disk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmkeep.disks.device import DiskSource, DiskTarget, Extent
    from vmkeep.fleet.model import VM
    from vmkeep.hypervisors.base import Capacity, Elsewhere, Found, Orphan

_STOP_S: Final = 120.0
_POLL_S: Final = 0.2


class LibvirtHypervisor:
    """The VMs of one libvirt daemon. A disk goes only when another takes its place, or with a drill's VM."""

    driver: Final = "libvirt"
    can_start: Final = True

    def __init__(
        self, name: str, uri: str, *, sockets: Path | None = None, kernel_mounts: bool = False
    ) -> None:
        """Use the daemon at *uri*; it is connected to when first needed.

        Args:
            sockets: The folder of the sockets that running VMs' disks are read through.
        """
        self.name = name
        self.kernel_mounts = kernel_mounts
        self._connection = shared(uri)
        self._capture = Capture(self._connection, sockets=sockets)
        self._configure = Configure(self._connection)
        self._restore = Restore(self._connection)
        self.streams = LibvirtStreams(self._connection, self._restore, sockets=sockets)
        self._drills = Drill(self._connection)

    def unsupported(self, name: str, vm: VM) -> Sequence[str]:
        """Return one sentence for each declared thing that libvirt does not do."""
        return [
            f"VM {name}: {what} is not supported by driver libvirt (hypervisor {self.name}): {advice}"
            for what, advice in self._configure.unsupported(vm)
        ]

    def inventory(self) -> Sequence[Found]:
        """Return all domains, also those that are only transient."""
        return inventory.machines(self._connection)

    def capacity(self) -> Capacity:
        """Return what the host and its storage pools have."""
        return inventory.capacity(self._connection)

    def exists(self, name: str) -> bool:
        """Tell whether there is a domain of that name."""
        return self._connection.find_domain(name) is not None

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
        """Look what the VMs are, end orphaned jobs, and choose the checkpoints to build on."""
        scratch.reap()
        known = marks or {}
        machines = {}
        for name, vm in vms.items():
            machine = self._capture.prepare(name, vm, owner=owner, marks=known.get(name, {}))
            definition, lacking = belongings.collect(
                self._connection, machine.definition, running=machine.running
            )
            machines[name] = replace(machine, definition=definition, remark=lacking)
        return Snapshot(group, "", "powered-off", machines)

    def take(self, prepared: Snapshot) -> Snapshot:
        """Begin the backup jobs of the running VMs, and record what the images of the others are."""
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
        state = find_disk(machine, disk)
        if machine.running:
            self._capture.require_job(machine)
            return NbdDevice(Path(machine.socket), state.export)
        what = f"VM {machine.vm}: disk {disk}"
        return images.ImageSource(Path(state.path), state.format, what=what, expected=state.fingerprint)

    def changed(self, machine: MachineState, disk: str, since: str) -> Sequence[Extent] | None:
        """Return what the checkpoint *since* saw, or nothing for an image that nobody touched since."""
        state = find_disk(machine, disk)
        if not machine.running:
            return () if state.mark == since else None
        if state.since != since:
            return None
        self._capture.require_job(machine)
        with NbdDevice(Path(machine.socket), state.export) as device:
            return device.dirty(backup_job.BITMAP)

    def release(self, snapshot: Snapshot) -> None:
        """End the backup jobs."""
        for machine in snapshot.machines.values():
            self._capture.release(machine)

    def require_place(self, elsewhere: Elsewhere) -> None:
        """Check that the networks and the storage pool are there."""
        require_networks(self._connection, [*elsewhere.networks.values()])
        if elsewhere.storage is not None:
            pools.folder(self._connection, elsewhere.storage)

    def create(
        self,
        name: str,
        definition: str,
        *,
        overwrite: bool,
        drill: str | None = None,
        elsewhere: Elsewhere = AS_IT_WAS,
    ) -> Sequence[Change]:
        """Define the domain, for a restore; disks that are there stay as they are."""
        return self._restore.create(name, definition, overwrite=overwrite, drill=drill, elsewhere=elsewhere)

    def create_disk(self, name: str, disk: str, *, size: int, format: str) -> DiskTarget:  # noqa: A002
        """Make a new image beside the present one of that name, which it replaces in `commit_disks`."""
        return self._restore.create_disk(name, disk, size=size, format=format)

    def commit_disks(self, name: str, disks: Sequence[str]) -> None:
        """Put new images in place, all or none."""
        self._restore.commit_disks(name, disks)

    def discard_disks(self, name: str, disks: Sequence[str]) -> None:
        """Remove new images that were not put in place."""
        self._restore.discard_disks(name, disks)

    def isolate(self, drill: str) -> None:
        """Make the isolated network of a drill, with DHCP and DNS of its own."""
        self._drills.isolate(drill)

    def remove(self, name: str, *, drill: str) -> None:
        """Remove a domain of a drill with its disks, running or not."""
        self._drills.remove(name, drill)

    def end_isolation(self, drill: str) -> None:
        """Remove the isolated network of a drill."""
        self._drills.end_isolation(drill)

    def orphans(self) -> Sequence[Orphan]:
        """Return VMs and networks of drills, and new disks, whose makers do not run here any more."""
        return [*self._drills.orphans()]

    def images(self, name: str) -> Sequence[Image]:
        """Return the files of the VM's disks, in order."""
        domain = self._connection.find_domain(name)
        if domain is None:
            return []
        with translated(f"VM {name}"):
            machine = read(parse(domain.XMLDesc(), what=f"VM {name}"))
        found = [(disk, path_of(self._connection, disk)) for disk in machine.disks]
        return [Image(disk.name, path, disk.format) for disk, path in found if path and path.exists()]

    def is_running(self, name: str) -> bool:
        """Tell whether the domain is active."""
        domain = self._connection.find_domain(name)
        return domain is not None and bool(domain.isActive())

    def agent(self, name: str) -> LibvirtAgent:
        """Return the way to the guest agent of a running VM that has a channel for one."""
        domain = self._connection.domain(name)
        with translated(f"VM {name}"):
            if not domain.isActive():
                raise SourceError(f"VM {name} does not run, so no guest agent answers")
            machine = read(parse(domain.XMLDesc(), what=f"VM {name}"))
        if not machine.agent:
            raise SourceError(
                f"VM {name} has no channel for a guest agent: declare guest: {{agent: true}}, run "
                f"'vmkeep configure {name}', and start it anew"
            )
        return LibvirtAgent(self._connection, name)

    def start(self, name: str) -> None:
        """Power the VM on; one that runs already stays as it is."""
        domain = self._connection.domain(name)
        with translated(f"VM {name}: starting"):
            if not domain.isActive():
                self.streams.let_start(name)
                domain.create()

    def stop(self, name: str, *, timeout_s: float = _STOP_S) -> None:
        """Ask the guest to power off, and wait.

        Raises:
            TemporaryError: it still runs after *timeout_s* seconds.
        """
        domain = self._connection.find_domain(name)
        if domain is None:
            raise SourceError(f"VM {name} does not exist at {self._connection.uri}")
        with translated(f"VM {name}: stopping"):
            if domain.isActive():
                domain.shutdown()
            deadline = time.monotonic() + timeout_s
            while domain.isActive():
                if time.monotonic() > deadline:
                    raise TemporaryError(
                        f"VM {name} was asked to power off, and still runs after {timeout_s:.0f} s: "
                        f"look at it, or end it with 'virsh destroy {name}'"
                    )
                time.sleep(_POLL_S)
