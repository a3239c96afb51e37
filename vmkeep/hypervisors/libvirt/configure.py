"""Making a domain what the fleet file declares. Its disks grow; they are never shrunk or deleted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import libvirt

from vmkeep.disks import images
from vmkeep.errors import InputError
from vmkeep.hypervisors import definition as definitions
from vmkeep.hypervisors import reconcile
from vmkeep.hypervisors.base import Change
from vmkeep.hypervisors.libvirt import acceleration, build, edit, pools, restoring
from vmkeep.hypervisors.libvirt.connection import translated
from vmkeep.hypervisors.libvirt.inventory import seen
from vmkeep.hypervisors.libvirt.machine import parse, read, to_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from xml.etree import ElementTree as ET

    from vmkeep.fleet.model import VM
    from vmkeep.hypervisors.definition import Definition, DiskFile
    from vmkeep.hypervisors.libvirt.connection import Connection
    from vmkeep.hypervisors.libvirt.machine import Machine

SECURE: Final = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
_CONSOLES: Final = Path("/var/log/libvirt/qemu")
"""Where libvirt lets QEMU write, also under AppArmor and SELinux."""


class Configure:
    """Compares domains with the fleet file, and changes them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def unsupported(self, vm: VM) -> Iterator[tuple[str, str]]:
        """Yield each declared thing that this driver does not do, and what to do."""
        if vm.placement is not None and vm.placement.hosts:
            yield "placement.hosts", "a libvirt connection is one host; remove it"
        for disk in vm.disks:
            if disk.format not in pools.FORMATS:
                yield f"disks.{disk.name}.format {disk.format}", f"use {' or '.join(pools.FORMATS)}"

    def reconcile(self, name: str, vm: VM, *, apply: bool) -> list[Change]:
        """Return the differences between declared and actual; carry them out if *apply*."""
        domain = self._connection.find_domain(name)
        if domain is None:
            return self._create(name, vm, apply=apply)
        with translated(f"VM {name}"):
            root = parse(domain.XMLDesc(SECURE), what=f"VM {name}")
            restoring.require_whole(root)
            machine = read(root)
            actual = seen(domain, machine)
            declared = self._as_it_is(vm, actual)
            wanted = self._wanted(name, declared, actual)
            changes = reconcile.differences(name, declared, actual, wanted, adopted=False)
            _refuse(name, machine, wanted, changes)
            if declared.guest is not None and declared.guest.agent and not machine.agent:
                changes.append(Change("guest.agent", None, "a channel for the guest agent"))
            pending = bool(domain.isActive())
            changes = [replace(one, pending=pending and not one.what.endswith(".size")) for one in changes]
            if not apply or not changes:
                return changes
            self._change(domain, root, declared, actual, wanted)
        return [replace(one, applied=True) for one in changes]

    def _create(self, name: str, vm: VM, *, apply: bool) -> list[Change]:
        wanted = self._wanted(name, vm, None)
        changes = reconcile.differences(name, vm, None, wanted, adopted=False)
        iso = pools.find_iso(self._connection, vm.iso) if vm.iso is not None else None
        require_networks(self._connection, vm.networks)
        if not apply:
            return changes
        kind = acceleration.domain_type(self._connection, arch=build.ARCH, machine=build.MACHINE)
        console = (
            _CONSOLES / f"{name}-console.log"
            if self._connection.uri.partition("?")[0].endswith("/system")
            else None
        )
        for disk in wanted.disks:
            self._make(name, vm, disk)
        root = build.domain(vm, wanted, kind=kind, console=console, iso=iso)
        with translated(f"VM {name}"):
            self._connection.get().defineXML(to_text(root))
        return [replace(change, applied=True) for change in changes]

    def _change(
        self, domain: libvirt.virDomain, root: ET.Element, vm: VM, actual: Definition, wanted: Definition
    ) -> None:
        """Carry out what differs: new disks first, then the definition, then growth."""
        known = {disk.name for disk in actual.disks}
        for disk in wanted.disks:
            if disk.name not in known:
                self._make(wanted.name, vm, disk)
        iso = pools.find_iso(self._connection, vm.iso) if vm.iso is not None else None
        edit.apply(root, vm, wanted, known=known, iso=iso)
        self._connection.get().defineXML(to_text(root))
        for disk in wanted.disks:
            before = next((one for one in actual.disks if one.name == disk.name), None)
            if before is not None and disk.size > before.size:
                self._grow(domain, root, disk)

    def _grow(self, domain: libvirt.virDomain, root: ET.Element, disk: DiskFile) -> None:
        if domain.isActive():
            found = read(root).disk(disk.name)
            if found is not None:
                domain.blockResize(found.target, disk.size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
            return
        what = f"VM {domain.name()}: disk {disk.name}"
        images.grow(Path(disk.file), disk.format, disk.size, what=what)

    def _make(self, name: str, vm: VM, disk: DiskFile) -> None:
        """Create the file of a disk; one that an interrupted call made already is taken."""
        path = Path(disk.file)
        if path.exists():
            shape = images.inspect(path, disk.format, what=f"VM {name}: disk {disk.name}")
            if shape.size != disk.size:
                raise InputError(
                    f"VM {name}: disk {disk.name}: {path} is there already, and is not the VM's: "
                    "move it away, or declare its size to use it"
                )
            return
        storage = next((one.storage for one in vm.disks if one.name == disk.name), None)
        pools.make(self._connection, storage, path.name, disk.format, disk.size)

    def _as_it_is(self, vm: VM, actual: Definition) -> VM:
        """Return what is declared, and for all that is not, what is: only what someone wrote is changed."""
        declared = reconcile.as_it_is(vm, actual)
        iso = declared.iso
        if iso is not None and iso != actual.iso and pools.find_iso(self._connection, iso) == actual.iso:
            return declared.model_copy(update={"iso": actual.iso})
        return declared

    def _wanted(self, name: str, vm: VM, actual: Definition | None) -> Definition:
        known = {disk.name for disk in actual.disks} if actual else set()
        disks = []
        for disk in reconcile.wanted_disks(vm, actual):
            if disk.name not in known:
                storage = next((one.storage for one in vm.disks if one.name == disk.name), None)
                where = pools.folder(self._connection, storage)
                disk = disk.model_copy(update={"file": str(where / f"{name}-{disk.name}.{disk.format}")})  # noqa: PLW2901
            disks.append(disk)
        return definitions.declared(name, vm, actual=actual, disks=tuple(disks))


def require_networks(connection: Connection, networks: Sequence[str]) -> None:
    """Check that the networks are there.

    Raises:
        InputError: one is not; says which there are.
    """
    with translated(f"networks at {connection.uri}"):
        known = sorted(network.name() for network in connection.get().listAllNetworks())
    for network in networks:
        if network != "user" and not network.startswith("bridge:") and network not in known:
            there = ", ".join(known) or "none"
            raise InputError(
                f"there is no network {network} at {connection.uri} (there is: {there}): "
                "make it with virsh net-define, or name a bridge of the host as bridge:NAME"
            )


def _refuse(name: str, machine: Machine, wanted: Definition, changes: Sequence[Change]) -> None:
    """Refuse what would leave the VM unable to boot, or with a disk that nobody meant.

    Raises:
        InputError: the fleet file is wrong about the VM.
    """
    if any(change.what == "firmware" for change in changes):
        raise InputError(
            f"VM {name} boots with {machine.firmware}, declared is {wanted.firmware}: what is installed on "
            f"its disks boots with one of them only; declare firmware: {machine.firmware}"
        )
    new = [disk.name for disk in wanted.disks if machine.disk(disk.name) is None]
    if new and machine.disks and not machine.named:
        there = ", ".join(disk.name for disk in machine.disks)
        raise InputError(
            f"VM {name} was not made by vmkeep, and has no disk {', '.join(new)} (it has: {there}): "
            "call its disks as 'vmkeep import' does"
        )
