"""Snapshots: running VMs by QEMU's backup job, powered-off ones by their images that lie still."""

from __future__ import annotations

import contextlib
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import libvirt

from vmkeep.disks import locking, scratch
from vmkeep.errors import SourceChangedError, SourceError, UnsupportedError
from vmkeep.hypervisors.base import DiskState, MachineState
from vmkeep.hypervisors.libvirt import backup_job, checkpoints, pools, restoring
from vmkeep.hypervisors.libvirt.connection import is_remote, translated
from vmkeep.hypervisors.libvirt.machine import Disk, Machine, parse, read
from vmkeep.hypervisors.still import still_disk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmkeep.fleet.model import VM
    from vmkeep.hypervisors.libvirt.connection import Connection

_AT_ONCE: Final = 16
"""How many VMs' jobs are begun at the same time."""


class Capture:
    """Prepares and takes the snapshots of one hypervisor's VMs."""

    def __init__(self, connection: Connection, *, sockets: Path | None) -> None:
        """Use a connection.

        Args:
            sockets: The folder of the jobs' sockets; by default each domain's own.
        """
        self._connection = connection
        self._sockets = sockets

    def prepare(self, name: str, vm: VM, *, owner: str, marks: Mapping[str, Sequence[str]]) -> MachineState:
        """Look what a VM is, and choose what its snapshot builds on."""
        domain = self._connection.find_domain(name)
        if domain is None:
            raise SourceError(
                f"VM {name} does not exist at {self._connection.uri}; `vmkeep configure` creates it"
            )
        with translated(f"VM {name}"):
            running = bool(domain.isActive())
            root = parse(domain.XMLDesc(0 if running else _SECURE), what=f"VM {name}")
            definition = domain.XMLDesc(_SECURE)
        restoring.require_whole(parse(definition, what=f"VM {name}"))
        machine = read(root)
        wanted = _declared(machine, vm)
        if not running:
            disks = tuple(self._still(name, disk) for disk in wanted)
            return MachineState(name, definition, disks)
        if is_remote(self._connection.uri):
            raise UnsupportedError(
                f"VM {name} runs at {self._connection.uri}: saving running VMs of another host is "
                "not supported, for the socket of its disks is there; run vmkeep on that host, "
                "or power the VM off"
            )
        backup_job.end_orphan(domain)
        known = checkpoints.Checkpoints(domain, root)
        bases = {disk.name: known.base(disk.target, marks.get(disk.name, ())) for disk in wanted}
        mark = ""
        if owner:
            known.tidy(owner, [base.mark for base in bases.values()])
            mark = checkpoints.new_name(owner)
        states = tuple(_live(domain, disk, bases[disk.name], mark) for disk in wanted)
        socket = self._socket_folder(domain) / f"{scratch.owner()}-{secrets.token_hex(4)}.nbd"
        return MachineState(name, definition, states, running=True, socket=str(socket))

    def take(self, machines: Mapping[str, MachineState]) -> dict[str, MachineState]:
        """Capture all at once; when one fails, none stays captured.

        Raises:
            SourceChangedError: a VM was started or stopped since it was prepared.
            SourceError: a job could not be begun.
        """
        live = [machine for machine in machines.values() if machine.running]
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._held_still([one for one in machines.values() if not one.running]))
            undo = stack.enter_context(contextlib.ExitStack())
            for machine in live:
                undo.callback(self.release, machine)
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="capture") as pool:
                taken = [*pool.map(self._begin, live)]
            done = {machine.vm: machine for machine in taken}
            for machine in machines.values():
                if not machine.running:
                    disks = tuple(still_disk(machine.vm, disk) for disk in machine.disks)
                    done[machine.vm] = replace(machine, disks=disks)
            undo.pop_all()
        return {name: done[name] for name in machines}

    def release(self, machine: MachineState) -> None:
        """End the VM's job, if it is still there."""
        domain = self._connection.find_domain(machine.vm) if machine.socket else None
        if domain is not None:
            backup_job.end(domain, Path(machine.socket))

    def require_job(self, machine: MachineState) -> None:
        """Check that the job that holds the VM's disks is still there.

        Raises:
            SourceChangedError: it is not.
        """
        domain = self._connection.find_domain(machine.vm)
        if domain is None or backup_job.socket_of(domain) != Path(machine.socket):
            raise SourceChangedError(
                f"VM {machine.vm}: the backup job that held its disks has ended: the VM was stopped, or its "
                "scratch file could not grow; back it up again"
            )

    def _begin(self, machine: MachineState) -> MachineState:
        name = machine.vm
        domain = self._connection.find_domain(name)
        if domain is None or not domain.isActive():
            raise SourceChangedError(f"VM {name} was stopped while its snapshot was prepared: try again")
        root = parse(domain.XMLDesc(), what=f"VM {name}")
        exported = {disk.export for disk in machine.disks}
        others = [disk.target for disk in read(root).disks if disk.target not in exported]
        socket = Path(machine.socket)
        mark = next((disk.mark for disk in machine.disks if disk.mark), "")
        checkpoint = backup_job.NewCheckpoint(mark, checkpoints.evidence(root)) if mark else None
        begun = time.time()

        def begin() -> None:
            disks = self._job_disks(machine)
            backup_job.begin(domain, disks, others, socket=socket, checkpoint=checkpoint)

        try:
            begin()
        except backup_job.CheckpointLostError as error:
            machine = _without_base(machine, str(error))
            begin()
        return replace(machine, begun=begun, ended=time.time())

    def _job_disks(self, machine: MachineState) -> list[backup_job.JobDisk]:
        token = Path(machine.socket).stem
        return [
            backup_job.JobDisk(
                disk.export,
                disk.since,
                tracked=bool(disk.mark),
                scratch=self._scratch_folder(disk) / f".{token}-{disk.export}.scratch",
            )
            for disk in machine.disks
        ]

    def _scratch_folder(self, disk: DiskState) -> Path:
        path = Path(disk.path)
        if disk.path and not path.is_block_device():
            return path.parent
        return pools.folder(self._connection, None)

    @contextlib.contextmanager
    def _held_still(self, machines: Sequence[MachineState]) -> Iterator[None]:
        """Keep powered-off VMs from being started for the length of a `with` block."""
        with contextlib.ExitStack() as locks:
            for machine in machines:
                domain = self._connection.find_domain(machine.vm)
                if domain is None or domain.isActive():
                    raise SourceChangedError(
                        f"VM {machine.vm} was started while its snapshot was prepared: try again"
                    )
                for disk in machine.disks:
                    what = f"VM {machine.vm}: disk {disk.name} ({disk.path})"
                    locks.enter_context(locking.locked(Path(disk.path), what=what))
            yield

    def _still(self, name: str, disk: Disk) -> DiskState:
        path = path_of(self._connection, disk)
        if path is None or not path.exists():
            raise SourceError(
                f"VM {name}: disk {disk.name} ({path or disk.target}) is not a file or block device of this "
                "host: start the VM to save it, or run vmkeep where the disk is"
            )
        return DiskState(disk.name, str(path), disk.format, 0, 0)

    def _socket_folder(self, domain: libvirt.virDomain) -> Path:
        if self._sockets is not None:
            self._sockets.mkdir(parents=True, exist_ok=True)
            return self._sockets
        return own_folder(domain, self._connection.uri)


_SECURE: Final = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE


def own_folder(domain: libvirt.virDomain, uri: str) -> Path:
    """Return the private folder of a running domain, where QEMU may make sockets under AppArmor and SELinux.

    See: libvirt, src/conf/domain_conf.c, virDomainDefGetShortName.

    Raises:
        SourceError: it is not where libvirt keeps it.
    """
    roots = (
        [Path("/var/lib/libvirt/qemu")]
        if uri.endswith("/system")
        else [Path.home() / ".config/libvirt/qemu/lib"]
    )
    for root in roots:
        for found in root.glob(f"domain-{domain.ID()}-*"):
            return found
    raise SourceError(
        f"VM {domain.name()}: its own folder is not in {roots[0]}: say as the hypervisor's sockets a folder "
        "in which QEMU may make sockets"
    )


def path_of(connection: Connection, disk: Disk) -> Path | None:
    """Return the file or block device of a disk; None where it is neither."""
    if disk.path is not None or disk.volume is None:
        return disk.path
    pool, volume = disk.volume
    with translated(f"storage pool {pool}: volume {volume}"):
        found = connection.get().storagePoolLookupByName(pool).storageVolLookupByName(volume)
        return Path(found.path())


def _declared(machine: Machine, vm: VM) -> list[Disk]:
    """Return the declared disks of a VM, in order.

    Raises:
        SourceError: it does not have one of them.
    """
    missing = [disk.name for disk in vm.disks if machine.disk(disk.name) is None]
    if missing:
        there = ", ".join(disk.name for disk in machine.disks) or "none"
        raise SourceError(
            f"VM {machine.name} has no disk {', '.join(missing)} (it has: {there}); `vmkeep configure` "
            "creates them, `vmkeep import` shows what they are called"
        )
    return [found for disk in vm.disks if (found := machine.disk(disk.name))]


def _live(domain: libvirt.virDomain, disk: Disk, base: checkpoints.Base, mark: str) -> DiskState:
    with translated(f"VM {domain.name()}: disk {disk.name}"):
        size, allocated, _ = domain.blockInfo(disk.target)
    return DiskState(
        disk.name,
        str(disk.path or ""),
        disk.format,
        size,
        allocated,
        export=disk.target,
        # Only qcow2 keeps a bitmap over a restart of the VM.
        mark=mark if disk.format == "qcow2" else "",
        since=base.mark,
        remark=base.remark,
    )


def _without_base(machine: MachineState, why: str) -> MachineState:
    disks = tuple(
        replace(disk, since="", remark=why if disk.since else disk.remark) for disk in machine.disks
    )
    return replace(machine, disks=disks)
