"""What a vSphere has: its VMs in the words of the fleet file, and how much room there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyVmomi import vim

from vmkeep.hypervisors.base import Capacity, Found, Storage
from vmkeep.hypervisors.definition import Definition, DiskFile, NetworkCard
from vmkeep.hypervisors.vsphere.captured import datastore_of
from vmkeep.hypervisors.vsphere.places import free_memory, is_usable

if TYPE_CHECKING:
    from vmkeep.hypervisors.vsphere.machine import Machine
    from vmkeep.hypervisors.vsphere.places import Places


def machines(places: Places) -> list[Found]:
    """Return all VMs, by name."""
    found = [
        Found(
            seen(one),
            running=one.running,
            agent=one.tools,
            storages={disk.name: datastore_of(disk.file) for disk in one.disks if disk.file},
        )
        for one in places.machines().values()
    ]
    return sorted(found, key=lambda one: one.definition.name)


def seen(machine: Machine) -> Definition:
    """Return a VM in the words of the fleet file."""
    return Definition(
        name=machine.name,
        uuid=str(machine.config.get("uuid", "")),
        cpus=machine.cpus,
        memory=machine.memory,
        firmware="uefi" if machine.config.get("firmware") == "efi" else "bios",
        iso=machine.iso,
        networks=tuple(
            NetworkCard(network=card.network, mac=str(card.device.macAddress or "")) for card in machine.cards
        ),
        disks=tuple(
            DiskFile(name=disk.name, file=disk.file, format="vmdk", size=disk.size) for disk in machine.disks
        ),
    )


def capacity(places: Places) -> Capacity:
    """Return what all hosts of the datacenter have together that are connected."""
    paths = [
        "summary.hardware.numCpuThreads", "summary.hardware.memorySize",
        "summary.quickStats.overallMemoryUsage", "runtime.connectionState", "runtime.inMaintenanceMode",
    ]  # fmt: skip
    cpus = memory = free = 0
    for host in places.connection.all_of(vim.HostSystem, paths, below=places.datacenter).values():
        if not is_usable(host):
            continue
        cpus += int(host.get("summary.hardware.numCpuThreads", 0))
        memory += int(host.get("summary.hardware.memorySize", 0))
        free += free_memory(host)
    storages = [
        Storage(name, int(one.get("summary.capacity", 0)), int(one.get("summary.freeSpace", 0)))
        for name, one in sorted(places.datastores().items())
    ]
    return Capacity(cpus, memory, free, tuple(storages))
