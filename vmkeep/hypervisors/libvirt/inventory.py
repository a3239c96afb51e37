"""What a libvirt host has: its VMs in the words of the fleet file, and how much room there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from vmkeep.errors import UnsupportedError, VmkeepError
from vmkeep.hypervisors.base import Capacity, Found, Storage
from vmkeep.hypervisors.definition import Definition, DiskFile, NetworkCard
from vmkeep.hypervisors.libvirt import pools
from vmkeep.hypervisors.libvirt.capture import path_of
from vmkeep.hypervisors.libvirt.connection import translated
from vmkeep.hypervisors.libvirt.machine import parse, read
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.hypervisors.libvirt.connection import Connection
    from vmkeep.hypervisors.libvirt.machine import Disk, Machine


def machines(connection: Connection) -> list[Found]:
    """Return all VMs, by name; one that vanishes meanwhile is left out."""
    with translated(f"VMs at {connection.uri}"):
        domains = connection.get().listAllDomains()
        folders = {path: name for name, path in pools.folders(connection)}
    found = []
    for domain in domains:
        with translated(f"VM {domain.name()}"):
            try:
                root = parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), what=f"VM {domain.name()}")
                machine = read(root)
                running = bool(domain.isActive())
                found.append(_found(connection, domain, machine, folders, running=running))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    continue
                raise
    return sorted(found, key=lambda one: one.definition.name)


def capacity(connection: Connection) -> Capacity:
    """Return what the host has."""
    with translated(f"libvirt at {connection.uri}"):
        host = connection.get()
        _, _, cpus, *_ = host.getInfo()
        memory = host.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        storages = []
        for pool in host.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            _, size, _, available = pool.info()
            storages.append(Storage(pool.name(), size, available))
    # Pages of the page cache are free as soon as they are needed.
    free = sum(memory.get(kind, 0) for kind in ("free", "cached", "buffers"))
    return Capacity(
        cpus, memory["total"] * KiB, free * KiB, tuple(sorted(storages, key=lambda one: one.name))
    )


def _found(
    connection: Connection,
    domain: libvirt.virDomain,
    machine: Machine,
    folders: dict[str, str],
    *,
    running: bool,
) -> Found:
    try:
        definition, remark = seen(domain, machine), ""
        storages = dict(_storages(connection, machine, folders))
    except VmkeepError as error:
        definition, remark, storages = _described(machine, ()), str(error), {}
    return Found(definition, running=running, agent=machine.agent, storages=storages, remark=remark)


def seen(domain: libvirt.virDomain, machine: Machine) -> Definition:
    """Return a domain in the words of the fleet file.

    Raises:
        UnsupportedError: it has a disk that the fleet file has no words for.
    """
    disks = []
    for disk in machine.disks:
        if disk.format not in pools.FORMATS:
            raise UnsupportedError(
                f"VM {machine.name}: disk {disk.name} has format {disk.format}: "
                f"the driver libvirt deals with {' and '.join(pools.FORMATS)}"
            )
        with translated(f"VM {machine.name}: disk {disk.name}"):
            size = _size(domain, disk)
        entry = {
            "name": disk.name,
            "file": str(disk.path or disk.target),
            "format": disk.format,
            "size": size,
        }
        disks.append(DiskFile.model_validate(entry))
    return _described(machine, tuple(disks))


def _size(domain: libvirt.virDomain, disk: Disk) -> int:
    if disk.volume is None or domain.isActive():
        return int(domain.blockInfo(disk.target)[0])
    pool, volume = disk.volume  # of a domain that is powered off libvirt does not say it
    return int(domain.connect().storagePoolLookupByName(pool).storageVolLookupByName(volume).info()[1])


def _described(machine: Machine, disks: tuple[DiskFile, ...]) -> Definition:
    return Definition(
        name=machine.name,
        uuid=machine.uuid,
        cpus=machine.cpus,
        memory=machine.memory,
        firmware="uefi" if machine.firmware == "uefi" else "bios",
        iso=machine.iso,
        networks=tuple(NetworkCard(network=card.network, mac=card.mac) for card in machine.cards),
        disks=disks,
    )


def _storages(connection: Connection, machine: Machine, folders: dict[str, str]) -> Iterator[tuple[str, str]]:
    for disk in machine.disks:
        if disk.volume is not None:
            yield disk.name, disk.volume[0]
            continue
        path = path_of(connection, disk)
        pool = folders.get(str(Path(path).parent)) if path else None
        if pool is not None:
            yield disk.name, pool
