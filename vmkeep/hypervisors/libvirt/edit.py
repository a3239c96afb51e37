"""Changes to a domain's XML that leave everything else in it as it is. No I/O."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from vmkeep.hypervisors.libvirt import build
from vmkeep.hypervisors.libvirt.machine import name_disks, read

if TYPE_CHECKING:
    from collections.abc import Collection

    from vmkeep.fleet.model import VM
    from vmkeep.hypervisors.definition import Definition, NetworkCard


def apply(root: ET.Element, vm: VM, wanted: Definition, *, known: Collection[str], iso: str | None) -> None:
    """Make a domain what is wanted.

    Args:
        known: The disks it has.
        iso: The file in its optical drive; None: whatever is in it stays.
    """
    before = read(root)
    if before.cpus != wanted.cpus:
        set_cpus(root, wanted.cpus)
    if before.memory != wanted.memory:
        set_memory(root, wanted.memory)
    if iso is not None and before.iso != iso:
        insert_iso(root, iso)
    set_cards(root, wanted.networks)
    name_disks(root, {disk.target: disk.name for disk in before.disks})
    for disk in wanted.disks:
        if disk.name not in known:
            build.add_disk(root, disk.name, Path(disk.file), disk.format)
    if vm.guest is not None and vm.guest.agent and not before.agent:
        _devices(root).append(build.agent_channel())


def set_cpus(root: ET.Element, count: int) -> None:
    """Give a domain so many processors; a topology that does not fit any more is dropped."""
    element = root.find("vcpu")
    if element is None:
        element = ET.SubElement(root, "vcpu")
    element.text = str(count)
    element.attrib.pop("current", None)
    cpu = root.find("cpu")
    topology = cpu.find("topology") if cpu is not None else None
    if cpu is not None and topology is not None:
        cpu.remove(topology)


def set_memory(root: ET.Element, size: int) -> None:
    """Give a domain so many bytes of memory."""
    for tag in ("memory", "currentMemory"):
        element = root.find(tag)
        if element is not None:
            element.set("unit", "bytes")
            element.text = str(size)


def insert_iso(root: ET.Element, iso: str) -> None:
    """Put an image into the optical drive, which is made where there is none."""
    drive = root.find("devices/disk[@device='cdrom']")
    if drive is None:
        _devices(root).append(build.cdrom(iso))
        return
    source = drive.find("source")
    if source is not None:
        drive.remove(source)
    drive.set("type", "file")
    drive.insert(0, ET.Element("source", {"file": iso}))


def set_cards(root: ET.Element, wanted: tuple[NetworkCard, ...]) -> None:
    """Give a domain these network adapters; those that it has stay as they are."""
    devices = _devices(root)
    there = {}
    for element in devices.findall("interface"):
        mac = element.find("mac")
        there[mac.get("address", "") if mac is not None else ""] = element
    if [*there] == [card.mac for card in wanted]:
        return
    for element in there.values():
        devices.remove(element)
    for card in wanted:
        devices.append(there.get(card.mac, build.card(card)))


def _devices(root: ET.Element) -> ET.Element:
    found = root.find("devices")
    return found if found is not None else ET.SubElement(root, "devices")
