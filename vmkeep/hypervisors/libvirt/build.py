"""The XML of a domain that is made from the fleet file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from vmkeep.errors import InputError
from vmkeep.hypervisors.definition import DiskFile
from vmkeep.hypervisors.libvirt.machine import AGENT_PORT, disk_elements, name_disks, read, target_of

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.fleet.model import VM
    from vmkeep.hypervisors.definition import Definition, NetworkCard

MACHINE: Final = "q35"
ARCH: Final = "x86_64"
_MOST_DISKS: Final = 26


def domain(vm: VM, wanted: Definition, *, kind: str, console: Path | None, iso: str | None) -> ET.Element:
    """Return a new domain.

    Args:
        wanted: What it should be; its disks with the paths of their files.
        kind: `kvm` or `qemu`.
        console: Where its serial console is written; None: it can be read with `virsh console` only.
        iso: The file in its optical drive.
    """
    root = ET.Element("domain", {"type": kind})
    _text(root, "name", wanted.name)
    _text(root, "uuid", wanted.uuid)
    _text(root, "memory", str(wanted.memory), unit="bytes")
    _text(root, "vcpu", str(wanted.cpus))
    system = ET.SubElement(root, "os", {"firmware": "efi"} if wanted.firmware == "uefi" else {})
    _text(system, "type", "hvm", arch=ARCH, machine=MACHINE)
    features = ET.SubElement(root, "features")
    for feature in ("acpi", "apic"):
        ET.SubElement(features, feature)
    # The host's own processor makes guests fast; what all hosts of a cluster have is for people to choose.
    ET.SubElement(root, "cpu", {"mode": "host-passthrough" if kind == "kvm" else "maximum"})
    ET.SubElement(root, "clock", {"offset": "utc"})
    devices = ET.SubElement(root, "devices")
    for index, one in enumerate(wanted.disks):
        devices.append(disk(one, target=target(index), boot=index + 1))
    if iso is not None:
        devices.append(cdrom(iso, boot=len(wanted.disks) + 1))
    devices.extend(map(card, wanted.networks))
    _console(devices, console)
    if vm.guest is not None and vm.guest.agent:
        devices.append(agent_channel())
    rng = ET.SubElement(devices, "rng", {"model": "virtio"})
    _text(rng, "backend", "/dev/urandom", model="random")
    name_disks(root, {target(index): one.name for index, one in enumerate(wanted.disks)})
    return root


def disk(one: DiskFile, *, target: str, boot: int | None = None) -> ET.Element:
    """Return a virtio disk on a file; what the guest frees becomes a hole."""
    element = ET.Element("disk", {"type": "file", "device": "disk"})
    ET.SubElement(element, "driver", {"name": "qemu", "type": one.format, "discard": "unmap"})
    ET.SubElement(element, "source", {"file": one.file})
    ET.SubElement(element, "target", {"dev": target, "bus": "virtio"})
    if boot is not None:
        ET.SubElement(element, "boot", {"order": str(boot)})
    return element


def add_disk(root: ET.Element, name: str, path: Path, format: str) -> None:  # noqa: A002
    """Give a domain one more disk, on a target that is free."""
    taken = {target_of(one): one for one in disk_elements(root)}
    index = 0
    while (free := target(index)) in taken:
        index += 1
    devices = root.find("devices")
    if devices is None:
        devices = ET.SubElement(root, "devices")
    devices.append(
        disk(
            DiskFile.model_validate({"name": name, "file": str(path), "format": format, "size": 0}),
            target=free,
        )
    )
    called = {one.target: one.name for one in read(root).disks}
    name_disks(root, {**called, free: name})


def cdrom(iso: str, *, boot: int | None = None) -> ET.Element:
    """Return an optical drive with *iso* in it."""
    element = ET.Element("disk", {"type": "file", "device": "cdrom"})
    ET.SubElement(element, "driver", {"name": "qemu", "type": "raw"})
    ET.SubElement(element, "source", {"file": iso})
    ET.SubElement(element, "target", {"dev": "sda", "bus": "sata"})
    ET.SubElement(element, "readonly")
    if boot is not None:
        ET.SubElement(element, "boot", {"order": str(boot)})
    return element


def card(one: NetworkCard) -> ET.Element:
    """Return a virtio network adapter: on a libvirt network, `bridge:NAME`, or QEMU's own (`user`)."""
    kind, _, where = one.network.partition(":")
    if kind == "bridge" and where:
        element = ET.Element("interface", {"type": "bridge"})
        ET.SubElement(element, "source", {"bridge": where})
    elif one.network == "user":
        element = ET.Element("interface", {"type": "user"})
    else:
        element = ET.Element("interface", {"type": "network"})
        ET.SubElement(element, "source", {"network": one.network})
    ET.SubElement(element, "mac", {"address": one.mac})
    ET.SubElement(element, "model", {"type": "virtio"})
    return element


def agent_channel() -> ET.Element:
    """Return the channel of the guest agent; libvirt chooses its socket."""
    element = ET.Element("channel", {"type": "unix"})
    ET.SubElement(element, "target", {"type": "virtio", "name": AGENT_PORT})
    return element


def target(index: int) -> str:
    """Return the target of the disk with this number, from 0.

    Raises:
        InputError: there are too many.
    """
    if index >= _MOST_DISKS:
        raise InputError(f"a VM has {_MOST_DISKS} disks at most, and {index + 1} are declared")
    return f"vd{chr(ord('a') + index)}"


def _console(devices: ET.Element, console: Path | None) -> None:
    element = ET.SubElement(devices, "serial", {"type": "pty"})
    if console is not None:
        ET.SubElement(element, "log", {"file": str(console), "append": "on"})


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element
