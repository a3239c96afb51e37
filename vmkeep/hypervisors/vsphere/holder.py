"""New disks on their way into vSphere: in a VM that only holds them, until another has them.

image here ── streamOptimized ── holder ── detached ── in place
                                 all of it goes when this fails
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pyVmomi import vim

from vmkeep.disks import maker, stream_vmdk
from vmkeep.disks.raw import RawSource
from vmkeep.errors import NotFoundError, SourceError, VmkeepError
from vmkeep.hypervisors.drilled import orphan
from vmkeep.hypervisors.vsphere import build, restoring, transfer
from vmkeep.hypervisors.vsphere.build import Changes
from vmkeep.hypervisors.vsphere.lease import Lease
from vmkeep.hypervisors.vsphere.machine import plain, read
from vmkeep.hypervisors.vsphere.restoring import Holder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from vmkeep.hypervisors.base import Orphan
    from vmkeep.hypervisors.vsphere.machine import Machine
    from vmkeep.hypervisors.vsphere.places import Places

_MEMORY_MB: Final = 64


@dataclass(frozen=True, slots=True)
class NewDisk:
    """A disk that was written here."""

    name: str
    path: Path
    """A raw image."""
    size: int
    """Bytes."""
    datastore: str
    """Where it is to be."""


class Holders:
    """VMs that hold new disks."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._connection = places.connection

    @contextlib.contextmanager
    def filled(self, machine: Machine, disks: Sequence[NewDisk]) -> Iterator[dict[str, str]]:
        """Send disks in; yield their files by name, which are no VM's. What none has afterwards goes."""
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        # The folder of the disks is called so for as long as they are there.
        name = f"{machine.name[:40]}-restored-{stamp}"
        mark = Holder(machine.name, tuple(disk.name for disk in disks), maker.me())
        try:
            held = self._filled(name, mark, disks)
            files = {disk.name: one.file for disk, one in zip(disks, held.disks, strict=True)}
            self._let_go(name, mark, held)
            yield files
        finally:
            with contextlib.suppress(VmkeepError):  # its mark stays: `clear` takes it away later
                self._drop(name, mark)

    def clear(self, vm: str, disks: Sequence[str] | None) -> None:
        """Remove disks that we, or a process that is gone, sent in for a VM and did not put in place."""
        for holder, mark in self._all():
            ours = disks is None or {*mark.disks} & {*disks}
            if mark.vm == vm and ours and (mark.maker == maker.me() or maker.is_gone(mark.maker)):
                self._remove(holder, mark)

    def orphans(self) -> Iterator[Orphan]:
        """Yield disks that were sent in by processes that do not run here any more."""
        for _, mark in self._all():
            yield from orphan(mark.maker, vm=mark.vm, disks=mark.disks)

    def delete(self, file: str) -> None:
        """Delete the file of a disk; nothing happens when it is not there."""
        manager = self._connection.content.virtualDiskManager
        datacenter = self._places.datacenter
        with contextlib.suppress(NotFoundError):
            self._connection.run(
                f"removing {file}", lambda: manager.DeleteVirtualDisk_Task(name=file, datacenter=datacenter)
            )

    def _filled(self, name: str, mark: Holder, disks: Sequence[NewDisk]) -> Machine:
        devices = Changes(None)
        places = [devices.free_place() for _ in disks]
        for place, disk in zip(places, disks, strict=True):
            devices.add_disk(place, size=disk.size, file=f"[{disk.datastore}]", create=True)
        spec = vim.vm.ConfigSpec(
            name=name,
            guestId="otherGuest64",
            numCPUs=1,
            memoryMB=_MEMORY_MB,
            annotation=f"vmkeep sends disks of VM {mark.vm} in; it goes when they are in place",
            files=vim.vm.FileInfo(vmPathName=f"[{disks[0].datastore}]"),
            deviceChange=devices.changes,
            extraConfig=build.options(restoring.note_holder(mark)),
        )
        spot = self._places.spot(datastores=[*dict.fromkeys(disk.datastore for disk in disks)])
        folder = self._connection.prop(self._places.datacenter, "vmFolder")
        whole = vim.vm.VmImportSpec(configSpec=spec)
        what = f"VM {mark.vm}: sending disks in"
        with Lease(
            self._connection, what, lambda: spot.pool.ImportVApp(spec=whole, folder=folder, host=spot.host)
        ) as lease:
            self._send(lease, dict(zip(places, disks, strict=True)), what)
        holder = self._find(name)
        if holder is None:
            raise SourceError(f"{what}: the VM that is to hold them is not there")
        held = self._places.machine(holder)
        if [disk.size for disk in held.disks] != [disk.size for disk in disks]:
            raise SourceError(f"{what}: what arrived has other sizes than what was sent")
        return held

    def _send(self, lease: Lease, disks: Mapping[str, NewDisk], what: str) -> None:
        """Send disks in, by their places in the VM that holds them."""
        lease.expect(sum(disk.path.stat().st_blocks * 512 for disk in disks.values()))
        urls = {place: lease.url_of(place) for place in disks}
        for place, disk in disks.items():
            url = urls[place]
            remote = transfer.leased(self._connection, url.url, url.sslThumbprint)
            with RawSource(disk.path, what=f"{what}: {disk.name}") as source:
                remote.upload(stream_vmdk.stream(source), what=f"{what}: {disk.name}", progress=lease.count)

    def _let_go(self, name: str, mark: Holder, held: Machine) -> None:
        """Take the disks away from their holder, which from then on says where they are."""
        devices = Changes(held)
        for disk in held.disks:
            devices.take_disk(disk)
        now = replace(mark, files=tuple(disk.file for disk in held.disks))
        spec = vim.vm.ConfigSpec(
            deviceChange=devices.changes, extraConfig=build.options(restoring.note_holder(now))
        )
        holder = self._find(name)
        if holder is None:
            raise SourceError(f"VM {mark.vm}: the VM that held its new disks is gone: restore it again")
        self._connection.run(f"VM {name}: letting disks go", lambda: holder.ReconfigVM_Task(spec))

    def _drop(self, name: str, mark: Holder) -> None:
        holder = self._find(name)
        if holder is not None:
            now = restoring.holder(self._places.machine(holder).extra) or mark
            self._remove(holder, now)

    def _remove(self, holder: vim.VirtualMachine, mark: Holder) -> None:
        """Remove a holder, with all disks that no other VM has.

        Raises:
            SourceError: vSphere does not say what the VM is that they are for: it may have them.
        """
        target = self._places.find(mark.vm)
        if target is not None:
            self._places.machine(target)
        used = self._places.files_in_use() if mark.files else set()
        for file in mark.files:
            if file not in used:
                self.delete(file)
        self._connection.run(f"VM {mark.vm}: removing what held its new disks", holder.Destroy_Task)

    def _find(self, name: str) -> vim.VirtualMachine | None:
        found = self._connection.all_of(vim.VirtualMachine, ["name"], below=self._places.datacenter)
        return next((vm for vm, one in found.items() if plain(str(one.get("name", ""))) == name), None)

    def _all(self) -> list[tuple[vim.VirtualMachine, Holder]]:
        found = self._connection.all_of(
            vim.VirtualMachine, ["config.extraConfig"], below=self._places.datacenter
        )
        marked = [(vm, restoring.holder(read(one, {}).extra)) for vm, one in found.items()]
        return [(vm, mark) for vm, mark in marked if mark is not None]
