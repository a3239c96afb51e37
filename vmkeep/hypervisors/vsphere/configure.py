"""Making a VM of vSphere what the fleet file declares. Its disks grow; they are never shrunk or deleted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vmkeep.errors import InputError, SourceChangedError, SourceError
from vmkeep.hypervisors import reconcile
from vmkeep.hypervisors.definition import Definition, NetworkCard
from vmkeep.hypervisors.vsphere import build
from vmkeep.hypervisors.vsphere.build import Changes
from vmkeep.hypervisors.vsphere.inventory import seen
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmkeep.fleet.model import VM
    from vmkeep.hypervisors.base import Change
    from vmkeep.hypervisors.vsphere.machine import Machine
    from vmkeep.hypervisors.vsphere.places import Places

_GUEST = "otherLinux64Guest"
"""What vSphere is told about the guest, which the fleet file does not say."""


class Configure:
    """Compares VMs with the fleet file, and changes them."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._connection = places.connection

    def unsupported(self, vm: VM) -> Iterator[tuple[str, str]]:
        """Yield each declared thing that this driver does not do, and what to do."""
        if vm.placement is not None and (vm.placement.near or vm.placement.away_from):
            yield "placement.near and away_from", "DRS places VMs: make a rule in vCenter, and remove it here"
        yield from _unasked(vm)
        for disk in vm.disks:
            if "format" in disk.model_fields_set and disk.format != "vmdk":
                yield f"disks.{disk.name}.format {disk.format}", "disks of vSphere are vmdk; leave it out"

    def reconcile(self, name: str, vm: VM, *, apply: bool) -> list[Change]:
        """Return the differences between declared and actual; carry them out if *apply*."""
        vm = _with_format(vm)
        there = self._places.find(name)
        if there is None:
            wanted = _wanted(name, vm, None)
            changes = reconcile.differences(name, vm, None, wanted, adopted=False)
            self._places.require_networks(vm.networks)
            iso = self._places.find_iso(vm.iso) if vm.iso is not None else None
            if apply:
                self._create(name, vm, iso)
            return [replace(one, applied=apply) for one in changes]
        machine = self._places.machine(there)
        actual = seen(machine)
        declared = reconcile.as_it_is(vm, actual)
        if declared.iso is not None and declared.iso != actual.iso:
            declared = declared.model_copy(update={"iso": self._places.find_iso(declared.iso)})
        wanted = _wanted(name, declared, actual)
        changes = reconcile.differences(name, declared, actual, wanted, adopted=False)
        _refuse(name, machine, wanted, changes)
        if apply and changes:
            self._change(there, machine, declared, wanted, {one.what for one in changes})
        return [replace(one, applied=apply) for one in changes]

    def _create(self, name: str, vm: VM, iso: str | None) -> None:
        known = self._places.require_networks(vm.networks)
        spot = self._places.spot(
            datastores=[*dict.fromkeys(disk.storage for disk in vm.disks if disk.storage)],
            networks={known[one] for one in vm.networks},
            hosts=vm.placement.hosts if vm.placement else (),
            preferred=[disk.storage for disk in vm.disks[:1] if disk.storage],
        )
        changes = Changes(None)
        where = {}
        for disk in vm.disks:
            where[disk.name] = changes.free_place()
            store = disk.storage or spot.datastore
            changes.add_disk(where[disk.name], size=disk.size, file=f"[{store}]", create=True)
        for network in vm.networks:
            changes.add_card(self._places.card_backing(known[network], network))
        if iso is not None:
            changes.insert(iso)
        spec = vim.vm.ConfigSpec(
            name=name,
            guestId=_GUEST,
            numCPUs=vm.cpus,
            memoryMB=vm.memory // MiB,
            firmware="efi" if vm.firmware == "uefi" else "bios",
            files=vim.vm.FileInfo(vmPathName=f"[{spot.datastore}]"),
            changeTrackingEnabled=True,
            deviceChange=changes.changes,
            extraConfig=build.options(build.names(where)),
        )
        folder = self._connection.prop(self._places.datacenter, "vmFolder")
        self._connection.run(
            f"VM {name}: creating",
            lambda: folder.CreateVM_Task(config=spec, pool=spot.pool, host=spot.host),
        )

    def _change(
        self, there: vim.VirtualMachine, machine: Machine, vm: VM, wanted: Definition, what: set[str]
    ) -> None:
        """Carry out what differs, in one call."""
        name = machine.name
        off_only = sorted(what & {"cpus", "memory"})
        if {card.network for card in machine.cards} - set(vm.networks):
            off_only += sorted(what & {"networks"})  # a card is never taken out of a guest that runs
        if machine.running and off_only:
            raise SourceChangedError(f"VM {name} is running: power it off to change {', '.join(off_only)}")
        changes = Changes(machine)
        spec: Any = vim.vm.ConfigSpec()
        if "cpus" in what:
            spec.numCPUs = wanted.cpus
        if "memory" in what:
            spec.memoryMB = wanted.memory // MiB
        if "networks" in what:
            known = self._places.require_networks(vm.networks)
            build.arrange_cards(
                changes,
                machine.cards,
                [(one, self._places.card_backing(known[one], one), None) for one in vm.networks],
            )
        if "iso" in what:
            changes.insert(wanted.iso)
        spec.extraConfig = build.options(build.names(self._disks(machine, vm, changes)))
        spec.deviceChange = changes.changes
        self._connection.run(f"VM {name}: changing", lambda: there.ReconfigVM_Task(spec))

    def _disks(self, machine: Machine, vm: VM, changes: Changes) -> dict[str, str]:
        """Add new disks and grow others; return the places of all."""
        where = {disk.name: disk.place for disk in machine.disks}
        for disk in vm.disks:
            present = machine.disk(disk.name)
            if present is None:
                where[disk.name] = changes.free_place()
                home = str(self._home(machine)) if disk.storage is None else disk.storage
                if disk.storage is not None:
                    self._places.require_datastore(disk.storage)
                changes.add_disk(where[disk.name], size=disk.size, file=f"[{home}]", create=True)
            elif disk.size > present.size:
                if machine.snapshots:
                    there = ", ".join(one.name for one in machine.snapshots)
                    raise SourceError(
                        f"VM {machine.name}: disk {disk.name} cannot grow while there are snapshots "
                        f"({there}): remove them first"
                    )
                changes.grow_disk(present, disk.size)
        return where

    def _home(self, machine: Machine) -> str:
        """Return the datastore that a VM is at home in."""
        return next((one.file.partition("]")[0][1:] for one in machine.disks if one.file), "") or (
            self._places.spot().datastore
        )


def _unasked(vm: VM) -> Iterator[tuple[str, str]]:
    """Yield what needs commands in the guest, where only VMware tools are asked, which run none."""
    if vm.guest is not None and vm.guest.ssh is not None and not vm.guest.agent:
        return
    advice = "VMware tools run no commands here; declare guest: {ssh: {host: ...}}, without agent"
    for check in vm.health:
        if check.kind in {"exec", "sql"}:
            yield f"health {check.kind}", advice
    for key, application in vm.components.applications.items():
        if application.pre or application.post:
            yield f"applications.{key}.pre and post", advice


def _with_format(vm: VM) -> VM:
    """Return what is declared with the one format that there is, unless another was written."""
    disks = tuple(
        disk if "format" in disk.model_fields_set else disk.model_copy(update={"format": "vmdk"})
        for disk in vm.disks
    )
    return vm.model_copy(update={"disks": disks})


def _wanted(name: str, vm: VM, actual: Definition | None) -> Definition:
    disks = reconcile.wanted_disks(vm, actual)
    return Definition(
        name=name,
        uuid=actual.uuid if actual else "",
        cpus=vm.cpus,
        memory=vm.memory,
        firmware=vm.firmware,
        iso=vm.iso,
        networks=tuple(NetworkCard(network=one, mac="") for one in vm.networks),
        disks=disks,
    )


def _refuse(name: str, machine: Machine, wanted: Definition, changes: Sequence[Change]) -> None:
    """Refuse what would leave the VM unable to boot, or with a disk that nobody meant.

    Raises:
        InputError: the fleet file is wrong about the VM.
    """
    firmware = next((one for one in changes if one.what == "firmware"), None)
    if firmware is not None:
        raise InputError(
            f"VM {name} boots with {firmware.actual}, declared is {firmware.declared}: what is installed on "
            f"its disks boots with one of them only; declare firmware: {firmware.actual}"
        )
    new = [disk.name for disk in wanted.disks if machine.disk(disk.name) is None]
    if new and machine.disks and not machine.named:
        there = ", ".join(disk.name for disk in machine.disks)
        raise InputError(
            f"VM {name} was not made by vmkeep, and has no disk {', '.join(new)} (it has: {there}): "
            "call its disks as 'vmkeep import' does"
        )
