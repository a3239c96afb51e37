"""Restoring VMs of vSphere: created from what was captured, their disks sent in beside the present ones."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING

from pyVmomi import vim

from vmkeep.disks import images, maker, scratch
from vmkeep.errors import InputError, SourceChangedError, SourceError
from vmkeep.hypervisors import reconcile
from vmkeep.hypervisors.base import AS_IT_WAS, Change
from vmkeep.hypervisors.drilled import require_copy, require_isolated, require_mark
from vmkeep.hypervisors.vsphere import build, captured, restoring
from vmkeep.hypervisors.vsphere.build import Changes
from vmkeep.hypervisors.vsphere.captured import datastore_of
from vmkeep.hypervisors.vsphere.holder import Holders, NewDisk
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from vmkeep.disks.device import DiskTarget
    from vmkeep.hypervisors.base import Elsewhere
    from vmkeep.hypervisors.vsphere.capture import Capture
    from vmkeep.hypervisors.vsphere.captured import Captured
    from vmkeep.hypervisors.vsphere.machine import Machine
    from vmkeep.hypervisors.vsphere.places import Places, Spot


class Restore:
    """Creates VMs and replaces their disks. Safe to use from several threads."""

    def __init__(self, places: Places, capture: Capture) -> None:
        self._places = places
        self._connection = places.connection
        self._capture = capture
        self.holders = Holders(places)
        """What deals with VMs that hold new disks."""
        self._locks: dict[str, threading.RLock] = {}
        """By VM: disks of several are sent in at the same time."""
        self._new: dict[tuple[str, str], tuple[Path, int, contextlib.ExitStack]] = {}
        """The images that are being written here, by VM and disk, with their sizes."""
        weakref.finalize(self, _remove, self._new)

    def create(
        self, name: str, definition: str, *, overwrite: bool, drill: str | None = None,
        elsewhere: Elsewhere = AS_IT_WAS,
    ) -> list[Change]:  # fmt: skip
        """Create a VM as it was captured, without disks; return what had to be adapted."""
        saved = captured.parse(definition, name)
        with self._locks.setdefault(name, threading.RLock()):
            there = self._places.find(name)
            machine = self._places.machine(there) if there is not None else None
            if drill is not None:
                require_copy(name, saved.name)
                require_isolated(drill, self._places.networks())
                if machine is not None:
                    require_mark(name, machine.extra.get(restoring.DRILL), drill)
                    return []
            if machine is not None and not overwrite:
                raise InputError(
                    f"VM {name} exists already at {self._connection}: say overwrite, "
                    "or restore under another name"
                )
            if machine is not None and elsewhere.storage is not None:
                raise InputError(
                    f"VM {name} exists, and its disks stay where they are: restore it under another name to "
                    f"have them in storage {elsewhere.storage}"
                )
            changes: list[Change] = []
            if saved.name != name:
                changes += _renamed(saved, name)
                saved = saved.renamed(name)
            saved, moved = reconcile.connected(saved, elsewhere.networks)
            changes += moved
            if drill is not None:
                changes += _isolated(saved, drill)
                saved = saved.isolated(drill)
            if there is None or machine is None:
                changes += self._make(saved, drill, elsewhere.storage)
            else:
                changes += self._adapt(there, machine, saved)
        return changes

    def create_disk(self, name: str, disk: str, size: int) -> DiskTarget:
        """Open an image here that becomes a disk when it is sent in."""
        with self._locks.setdefault(name, threading.RLock()):
            self.discard_disks(name, [disk])
            with contextlib.ExitStack() as stack:
                path = stack.enter_context(scratch.scratch_folder()) / "disk.raw"
                target = images.ImageTarget(path, "raw", size=size, what=f"VM {name}: disk {disk}")
                self._new[name, disk] = (path, size, stack.pop_all())
                return target

    def commit_disks(self, name: str, disks: Sequence[str]) -> None:
        """Send new disks in, and let the VM have them, all or none: one call changes all."""
        with self._locks.setdefault(name, threading.RLock()):
            there = self._places.require(name)
            lacking = [disk for disk in disks if (name, disk) not in self._new]
            if lacking:
                raise SourceError(
                    f"VM {name}: disk {', '.join(lacking)} was not restored: nothing to put in place"
                )
            machine = self._off(there)
            self._capture.require_alone(there, machine)
            machine = self._finished(there)
            new = [self._new_disk(machine, name, disk) for disk in disks]
            with self.holders.filled(machine, new) as files:
                self._put(there, machine, new, files)
            self._finished(there)
            for disk in disks:
                self._new.pop((name, disk))[2].close()

    def discard_disks(self, name: str, disks: Sequence[str]) -> None:
        """Remove new disks that were not put in place."""
        with self._locks.setdefault(name, threading.RLock()):
            for disk in disks:
                if (name, disk) in self._new:
                    self._new.pop((name, disk))[2].close()
            self.holders.clear(name, disks)

    def _make(self, saved: Captured, drill: str | None, storage: str | None) -> list[Change]:
        """Create a VM that is not there."""
        names = {card.network for card in saved.networks}
        known = self._places.require_networks(names | ({drill} if drill else set()))
        spot = self._places.spot(
            datastores=[storage] if storage else [],
            networks={known[one] for one in (names | ({drill} if drill else set()))},
            preferred=[*([storage] if storage else ()), *(disk.datastore for disk in saved.disks)],
            pinned=drill is not None,
        )
        devices = Changes(None)
        for one in saved.controllers:
            devices.controller(one.kind, one.bus)
        for card in saved.networks:
            devices.add_card(self._places.card_backing(known[card.network], card.network), card)
        spec = build.hardware(saved)
        spec.name = saved.name
        spec.files = vim.vm.FileInfo(vmPathName=f"[{spot.datastore}]")
        if saved.hardware:
            spec.version = saved.hardware
        if saved.uuid and self._is_free(saved.uuid):
            spec.uuid = saved.uuid
        marks = {restoring.DRILL: drill, restoring.MAKER: maker.me()} if drill else {}
        spec.extraConfig = build.options(
            saved.extra
            | build.names({disk.name: disk.place for disk in saved.disks if disk.place})
            | restoring.note_storage(_stores(saved, spot, storage))
            | marks
        )
        missing = [*self._inserted(devices, saved.iso)] if saved.iso is not None else []
        spec.deviceChange = devices.changes
        self._create(saved.name, spec, spot)
        return missing

    def _create(self, name: str, spec: vim.vm.ConfigSpec, spot: Spot) -> None:
        folder = self._connection.prop(self._places.datacenter, "vmFolder")
        self._connection.run(
            f"VM {name}: creating",
            lambda: folder.CreateVM_Task(config=spec, pool=spot.pool, host=spot.host),
        )

    def _adapt(self, there: vim.VirtualMachine, machine: Machine, saved: Captured) -> list[Change]:
        """Let a VM that is there be as it was captured; its disks stay as they are."""
        self._require_off(machine)
        known = self._places.require_networks({card.network for card in saved.networks})
        devices = Changes(machine)
        build.arrange_cards(
            devices,
            machine.cards,
            [
                (card.network, self._places.card_backing(known[card.network], card.network), card)
                for card in saved.networks
            ],
        )
        missing = [*self._inserted(devices, saved.iso)] if saved.iso != machine.iso else []
        where = {disk.name: disk.place for disk in machine.disks}
        for disk in saved.disks:
            if disk.name not in where:
                free = disk.place and disk.place not in where.values()
                where[disk.name] = disk.place if free else devices.free_place(but=where.values())
        stores = {disk.name: disk.datastore for disk in saved.disks if machine.disk(disk.name) is None}
        spec = build.hardware(saved)
        spec.deviceChange = devices.changes
        spec.extraConfig = build.options(build.names(where) | restoring.note_storage(stores))
        self._connection.run(f"VM {machine.name}: changing", lambda: there.ReconfigVM_Task(spec))
        return missing

    def _inserted(self, devices: Changes, iso: str | None) -> Iterator[Change]:
        """Put a captured image into the optical drive; yield that it is not there, if so."""
        try:
            devices.insert(self._places.find_iso(iso) if iso is not None else None)
        except InputError as error:
            yield Change("iso", iso, f"none: {error}", applied=True)

    def _new_disk(self, machine: Machine, name: str, disk: str) -> NewDisk:
        """Return a disk that was written here, as it is sent in."""
        path, size, _ = self._new[name, disk]
        if size % KiB:  # vSphere counts in KiB
            size += KiB - size % KiB
            os.truncate(path, size)
        present = machine.disk(disk)
        if present is not None and present.file:
            store = datastore_of(present.file)
        else:
            store = restoring.storage_of(machine.extra, disk)
        known = self._places.datastores()
        if store not in known:
            store = self._places.spot().datastore
        return NewDisk(disk, path, size, store)

    def _put(
        self, there: vim.VirtualMachine, machine: Machine, new: Sequence[NewDisk], files: dict[str, str]
    ) -> None:
        """Let a VM have new disks in place of those of the same names."""
        devices = Changes(machine)
        places = {**machine.places, **{disk.name: disk.place for disk in machine.disks}}
        old = [disk for one in new if (disk := machine.disk(one.name)) is not None]
        for disk in old:
            devices.take_disk(disk)
        kinds = {disk.place: disk for disk in old}
        for one in new:
            where = places.get(one.name) or devices.free_place(but=places.values())
            places[one.name] = where
            before = kinds.get(where)
            devices.add_disk(
                where,
                size=one.size,
                file=files[one.name],
                create=False,
                mode=before.mode if before is not None else "persistent",
            )
        used = self._places.files_in_use(but=there)
        gone = [disk.file for disk in old if disk.file and disk.file not in used]
        spec = vim.vm.ConfigSpec(
            deviceChange=devices.changes,
            changeTrackingEnabled=True,
            extraConfig=build.options(
                build.names(places)
                | restoring.note_replaced([*restoring.replaced(machine.extra), *gone])
                | restoring.note_made(
                    [*(one for one in restoring.made(machine.extra) if one not in gone), *files.values()]
                )
                | restoring.note_storage({one.name: "" for one in new})
            ),
        )
        self._connection.run(
            f"VM {machine.name}: putting restored disks in place", lambda: there.ReconfigVM_Task(spec)
        )

    def _finished(self, there: vim.VirtualMachine) -> Machine:
        """Remove what an earlier commit replaced; return what the VM is."""
        machine = self._places.machine(there)
        files = restoring.replaced(machine.extra)
        if not files:
            return machine
        present = {file for disk in machine.disks for file in disk.files}
        for file in files:
            if file not in present:
                self.holders.delete(file)
        spec = vim.vm.ConfigSpec(extraConfig=build.options(restoring.note_replaced([])))
        self._connection.run(f"VM {machine.name}: noting", lambda: there.ReconfigVM_Task(spec))
        return self._places.machine(there)

    def _is_free(self, uuid: str) -> bool:
        index = self._connection.content.searchIndex
        datacenter = self._places.datacenter
        found = self._connection.read(
            f"VM {uuid}",
            lambda: index.FindByUuid(datacenter=datacenter, uuid=uuid, vmSearch=True, instanceUuid=False),
        )
        return found is None

    def _off(self, there: vim.VirtualMachine) -> Machine:
        machine = self._places.machine(there)
        self._require_off(machine)
        return machine

    def _require_off(self, machine: Machine) -> None:
        if machine.running:
            raise SourceChangedError(f"VM {machine.name} is running: power it off first")


def _remove(new: Mapping[tuple[str, str], tuple[Path, int, contextlib.ExitStack]]) -> None:
    """Remove images that were neither committed nor discarded."""
    for _, _, stack in new.values():
        stack.close()


def _renamed(saved: Captured, name: str) -> Iterator[Change]:
    yield Change("name", saved.name, name, applied=True)
    yield Change("uuid", saved.uuid, "a new one", applied=True)
    for card in saved.networks:
        yield Change(f"networks.{card.network}", card.mac, "an address by vSphere", applied=True)


def _isolated(saved: Captured, drill: str) -> Iterator[Change]:
    for card in saved.networks:
        yield Change("network", card.network, drill, applied=True)
    if saved.iso is not None:
        yield Change("iso", saved.iso, "none in a drill", applied=True)


def _stores(saved: Captured, spot: Spot, storage: str | None) -> dict[str, str]:
    """Return where the disks of a new VM are to be."""
    return {
        disk.name: storage or (disk.datastore if disk.datastore in spot.datastores else spot.datastore)
        for disk in saved.disks
    }
