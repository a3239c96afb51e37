"""The storage pools that a VM's disks lie in: saved with its definition, and made again where they are gone.

    <vmkeep:pool autostart="yes" disks="root data"><pool type="dir">...</pool></vmkeep:pool>

Nothing is ever built, formatted or taken into use by a guess: `/dev/sdb1` may be another disk here.

    dir            its folder is made if it is missing
    fs             mounted if its device is named by what is on it (`/dev/disk/by-uuid/...`), and is there
    netfs          mounted if its server answers
    all others     not made: their volumes are no files, and vmkeep writes files
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import libvirt

from vmkeep.hypervisors.base import Change
from vmkeep.hypervisors.libvirt import pools
from vmkeep.hypervisors.libvirt.connection import is_remote, translated
from vmkeep.hypervisors.libvirt.machine import NAMESPACE, own, parse, read, to_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from vmkeep.hypervisors.libvirt.connection import Connection
    from vmkeep.hypervisors.libvirt.machine import Disk

TAG: Final = f"{{{NAMESPACE}}}pool"
_CERTAIN: Final = ("by-uuid", "by-partuuid", "by-id")
"""Folders of /dev/disk in which a name stands for one disk or file system, on whatever host."""
_PORTS: Final = {"auto": 2049, "nfs": 2049, "cifs": 445, "glusterfs": 24007}
"""Where servers of network file systems listen, by the pool's format."""
_ANSWERS_S: Final = 5.0
"""A mount of a server that is away hangs for minutes."""


def collect(connection: Connection, root: ET.Element) -> None:
    """Add the pools of a domain's disks to its definition; a disk that is in none needs none."""
    found: dict[str, tuple[libvirt.virStoragePool, list[str]]] = {}
    for disk in read(root).disks:
        pool = _pool_of(connection, disk)
        if pool is not None:
            found.setdefault(pool.name(), (pool, []))[1].append(disk.name)
    for _, (pool, disks) in sorted(found.items()):
        with contextlib.suppress(libvirt.libvirtError):
            xml = parse(pool.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE), what=f"storage pool {pool.name()}")
            for full in ("capacity", "allocation", "available"):
                for one in xml.findall(full):
                    xml.remove(one)
            for auth in xml.iter("auth"):
                auth.attrib.pop("passwd", None)
            autostart = "yes" if pool.autostart() else "no"
            element = ET.SubElement(own(root), TAG, {"autostart": autostart, "disks": " ".join(disks)})
            element.append(xml)


def folders(kept: Sequence[ET.Element]) -> Mapping[str, Path]:
    """Return the folders of captured pools that are one, by name."""
    captured = [xml for one in kept if (xml := one.find("pool")) is not None]
    return {
        xml.findtext("name", ""): Path(xml.findtext("target/path", ""))
        for xml in captured
        if xml.get("type") in pools.FOLDERS and xml.findtext("target/path")
    }


def make(connection: Connection, kept: Sequence[ET.Element], disks: Collection[str]) -> Iterator[Change]:
    """Make, or start, the pools that disks are to lie in again; of each that cannot be, say why.

    Args:
        disks: the names of those that are to lie where they lay.
    """
    for one in kept:
        xml = one.find("pool")
        if one.tag == TAG and xml is not None and {*one.get("disks", "").split()} & {*disks}:
            change = _ready(connection, xml, autostart=one.get("autostart") == "yes")
            if change is not None:
                yield change


def _pool_of(connection: Connection, disk: Disk) -> libvirt.virStoragePool | None:
    host = connection.get()
    with contextlib.suppress(libvirt.libvirtError):
        if disk.volume is not None:
            return host.storagePoolLookupByName(disk.volume[0])
        if disk.path is not None:
            return host.storageVolLookupByPath(str(disk.path)).storagePoolLookupByVolume()
    with contextlib.suppress(libvirt.libvirtError):
        # libvirt knows a volume only when the pool was refreshed after the file had been made.
        for name, folder in pools.folders(connection):
            if disk.path is not None and Path(folder) == disk.path.parent:
                return host.storagePoolLookupByName(name)
    return None


def _ready(connection: Connection, xml: ET.Element, *, autostart: bool) -> Change | None:
    name, folder = xml.findtext("name", ""), xml.findtext("target/path", "")
    what = f"storage pool {name}"
    with translated(what):
        for pool in connection.get().listAllStoragePools():
            there = parse(pool.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE), what=what)
            path = there.findtext("target/path", "")
            if there.get("type") == xml.get("type") and path == folder:
                return _started(pool)
            if pool.name() == name:
                return Change(
                    what,
                    f"{xml.get('type')} {folder}",
                    f"NOT made: another one has its name here ({there.get('type')} {path}); "
                    f"the disks lie in its old folder if that is here, or in {pools.DEFAULT}",
                )
    unsafe = _unsafe(connection, xml)
    problem = unsafe or _made(connection, xml, Path(folder), autostart=autostart)
    if problem:
        return Change(
            what, None, f"NOT made: {problem}; the disks lie in {pools.DEFAULT}, or where --storage says"
        )
    return Change(
        what, None, f"made as it was captured ({xml.get('type')} {folder}), and started", applied=True
    )


def _started(pool: libvirt.virStoragePool) -> Change | None:
    what = f"storage pool {pool.name()}"
    if pool.isActive():
        return None
    try:
        pool.create()
    except libvirt.libvirtError as error:
        return Change(
            what, "stopped", f"NOT started: {error}: look at it, then 'virsh pool-start {pool.name()}'"
        )
    return Change(what, "stopped", "started", applied=True)


def _unsafe(connection: Connection, xml: ET.Element) -> str:
    """Return why a pool is not to be made here, and what to do; empty: it is."""
    kind, name = xml.get("type", ""), xml.findtext("name", "")
    if is_remote(connection.uri):
        return f"it is on another host: make it there with 'virsh pool-define' and 'virsh pool-start {name}'"
    if kind not in pools.FOLDERS or not xml.findtext("target/path"):
        return f"it is of type {kind}, and vmkeep restores disks as files"
    if kind == "fs":
        device = Path(_attribute(xml, "source/device", "path"))
        if device.parent.parent != Path("/dev/disk") or device.parent.name not in _CERTAIN:
            return (
                f"its device ({device}) may be another one here: make sure that it is the same, then "
                f"'virsh pool-define' and 'virsh pool-start {name}'"
            )
        if not device.exists():
            return f"its device ({device}) is not here"
    if kind == "netfs":
        host = _attribute(xml, "source/host", "name")
        port = _PORTS.get(_attribute(xml, "source/format", "type") or "auto", _PORTS["auto"])
        try:
            socket.create_connection((host, port), timeout=_ANSWERS_S).close()
        except OSError as error:
            return (
                f"its server {host} does not answer at port {port} ({error}): see to that, then restore again"
            )
    return ""


def _made(connection: Connection, xml: ET.Element, folder: Path, *, autostart: bool) -> str:
    """Define and start a pool; return why that cannot be, and leave nothing then."""
    made: list[Path] = []
    pool = None
    try:
        _make_folder(folder, xml.find("target/permissions"), made)
        pool = connection.get().storagePoolDefineXML(to_text(xml))
        pool.create()
        pool.setAutostart(autostart)
    except (OSError, ValueError, libvirt.libvirtError) as error:
        with contextlib.suppress(libvirt.libvirtError):
            if pool is not None:
                pool.undefine()
        for one in reversed(made):
            with contextlib.suppress(OSError):
                one.rmdir()
        return f"{error}: make it with 'virsh pool-define' and 'virsh pool-start', then restore again"
    return ""


def _make_folder(folder: Path, permissions: ET.Element | None, made: list[Path]) -> None:
    """Make a folder as a pool says, and add to *made* what was made, the uppermost first."""
    for one in reversed((folder, *folder.parents)):
        if not one.exists():
            one.mkdir()
            made.append(one)
    if made and permissions is not None:
        folder.chmod(int(permissions.findtext("mode") or "0711", 8))
        if os.geteuid() == 0:
            owner, group = (int(permissions.findtext(one) or -1) for one in ("owner", "group"))
            os.chown(folder, max(owner, -1), max(group, -1))


def _attribute(xml: ET.Element, where: str, name: str) -> str:
    element = xml.find(where)
    return element.get(name, "") if element is not None else ""
