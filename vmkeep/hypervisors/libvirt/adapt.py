"""A captured domain made fit for where it is restored; every change is told. No I/O.

As itself it keeps its identity. Under another name it is another machine: with a UUID and network addresses
of its own, and no file of the one it was.
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

from vmkeep.hypervisors import definition as definitions
from vmkeep.hypervisors.base import Change
from vmkeep.hypervisors.libvirt import build
from vmkeep.hypervisors.libvirt.machine import disk_elements, name_disks, read, target_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from xml.etree import ElementTree as ET

    from vmkeep.hypervisors.libvirt.machine import Machine


def rename(root: ET.Element, name: str) -> Iterator[Change]:
    """Make a captured domain another one, called *name*."""
    captured = read(root)
    identity = str(uuid.uuid4())
    yield Change("name", captured.name, name, applied=True)
    _set(root, "name", name)
    yield from identify(root, identity)
    networks = tuple(card.network for card in captured.cards)
    cards = definitions.cards(identity, networks, known=())
    for element, card, old in zip(root.findall("devices/interface"), cards, captured.cards, strict=True):
        mac = element.find("mac")
        if mac is not None:
            mac.set("address", card.mac)
        yield Change(f"networks.{card.network}", old.mac, card.mac, applied=True)
    yield from _own_files(root, captured.name, name)


def connect(root: ET.Element, networks: Mapping[str, str]) -> Iterator[Change]:
    """Put network adapters onto other networks; what the guest sees of them stays.

    Args:
        networks: the new one (or `bridge:NAME`, `user`) by the old one.
    """
    for element, card in zip(root.findall("devices/interface"), read(root).cards, strict=True):
        wanted = networks.get(card.network)
        if wanted is None or wanted == card.network:
            continue
        model = build.card(definitions.NetworkCard(network=wanted, mac=card.mac))
        for tag in ("source", "target", "virtualport", "vlan", "port"):
            for old in element.findall(tag):
                element.remove(old)
        element.attrib.clear()
        element.set("type", model.get("type", ""))
        source = model.find("source")
        if source is not None:
            element.insert(0, source)
        yield Change(f"networks.{card.network}", card.network, wanted, applied=True)


def identify(root: ET.Element, identity: str) -> Iterator[Change]:
    """Give a domain another UUID, wherever it stands."""
    old = root.findtext("uuid", "")
    if old == identity:
        return
    _set(root, "uuid", identity)
    for entry in root.findall("sysinfo/system/entry[@name='uuid']"):
        entry.text = identity
    generation = root.find("genid")
    if generation is not None:
        generation.text = str(uuid.uuid4())
    yield Change("uuid", old, identity, applied=True)


def place_disks(root: ET.Element, paths: Mapping[str, Path]) -> Iterator[Change]:
    """Say in which file each disk lies, by its name."""
    machine = read(root)
    for element, disk in zip(disk_elements(root), machine.disks, strict=True):
        path = paths.get(disk.name)
        if path is not None and path != disk.path:
            put(element, path, disk.format)
            yield Change(f"disks.{disk.name}", str(disk.path or disk.target), str(path), applied=True)


def put(element: ET.Element, path: Path, format: str) -> None:  # noqa: A002
    """Let a disk's element lie in a file."""
    for tag in ("source", "backingStore", "mirror"):
        for old in element.findall(tag):
            element.remove(old)
    element.set("type", "file")
    source = element.makeelement("source", {"file": str(path)})
    element.insert(0, source)
    driver = element.find("driver")
    if driver is None:
        driver = element.makeelement("driver", {"name": "qemu"})
        element.insert(0, driver)
    driver.set("type", format)


def keep_names(root: ET.Element, machine: Machine) -> None:
    """Write down what the disks are called, now that their files may be called otherwise."""
    known = {disk.target: disk.name for disk in machine.disks}
    name_disks(
        root, {target_of(one): known.get(target_of(one), target_of(one)) for one in disk_elements(root)}
    )


def _own_files(root: ET.Element, old: str, new: str) -> Iterator[Change]:
    """Let go of files that belong to the domain that was captured: libvirt chooses others."""
    for nvram in root.findall("os/nvram"):
        nvram.text = None
        nvram.attrib.clear()
    for channel in root.findall("devices/channel[@type='unix']/source[@mode='bind']/.."):
        for source in channel.findall("source"):
            channel.remove(source)
    word = re.compile(rf"(?<![\w.-]){re.escape(old)}(?![\w])")
    for log in root.iterfind("devices/*/log"):
        before = log.get("file", "")
        head, slash, tail = before.rpartition("/")
        after = f"{head}{slash}{word.sub(new, tail)}"
        if after == before:
            after = f"{before}.{new}"
        log.set("file", after)
        yield Change("console log", before, after, applied=True)


def _set(root: ET.Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is None:
        element = root.makeelement(tag, {})
        root.insert(0, element)
    element.text = text
