"""What belongs to a VM beside its disks: its UEFI settings, its TPM's state, its networks and pools.

A captured definition carries them in vmkeep's metadata, so that one document says all of the machine:

    <vmkeep:nvram>...</vmkeep:nvram>                                 zlib, then base64
    <vmkeep:tpm file="tpm2/tpm2-00.permall">...</vmkeep:tpm>         the same, for each file
    <vmkeep:network autostart="yes"><network>...</network></vmkeep:network>
    <vmkeep:pool ...>                                                see `kept_pools`

They are taken out again before a domain is defined.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import libvirt

from vmkeep.errors import InputError, NotFoundError, SourceError, VmkeepError
from vmkeep.hypervisors.base import Change
from vmkeep.hypervisors.libvirt import kept_pools
from vmkeep.hypervisors.libvirt.connection import is_remote, translated
from vmkeep.hypervisors.libvirt.machine import NAMESPACE, own, parse, read, to_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmkeep.hypervisors.libvirt.connection import Connection

SYSTEM: Final = Path("/var/lib/libvirt/swtpm")
"""Where libvirt keeps the state of TPMs. See: libvirt, src/qemu/qemu_conf.c, swtpmStorageDir."""
_LARGEST: Final = 64 * 1024**2
_TAG: Final = f"{{{NAMESPACE}}}"


def collect(connection: Connection, definition: str, *, running: bool) -> tuple[str, str]:
    """Return a domain's definition with all that belongs to it, and what is missing of that, or nothing.

    What cannot be read keeps nobody from a backup: disks are worth more than settings. It is said.

    Args:
        running: whether the VM runs; of one that never did, there are no files.
    """
    root = parse(definition, what="the definition of a VM")
    take(root)
    lacking = [
        *_collect_nvram(connection, root, running=running),
        *_collect_tpm(connection, root, running=running),
    ]
    _collect_networks(connection, root)
    kept_pools.collect(connection, root)
    return to_text(root), "; ".join(lacking)


def take(root: ET.Element) -> list[ET.Element]:
    """Take what `collect` added out of a definition, and return it."""
    ours = own(root)
    found = [one for tag in ("nvram", "tpm", "network", "pool") for one in ours.findall(f"{_TAG}{tag}")]
    for one in found:
        ours.remove(one)
    return found


def prepare(connection: Connection, root: ET.Element, kept: Sequence[ET.Element]) -> Iterator[Change]:
    """Make a definition, and the host, ready for each other before the VM is defined there.

    A network that the VM was on and that is missing here is made as it was; a medium that is not here is
    taken out of its drive, for a VM does not start without it.

    Raises:
        InputError: a network cannot be made.
    """
    yield from _make_networks(connection, root, kept)
    if is_remote(connection.uri):
        return
    for drive in root.findall("devices/disk"):
        source = drive.find("source")
        if drive.get("device") not in {"cdrom", "floppy"} or source is None:
            continue
        medium = source.get("file")
        if medium is not None and not Path(medium).exists():
            drive.remove(source)
            yield Change(f"{drive.get('device')}", medium, "ejected: it is not here", applied=True)


def point(root: ET.Element, kept: Sequence[ET.Element], captured: str) -> None:
    """Say in a definition where the UEFI settings of the VM are to lie.

    Args:
        captured: their path as captured, or nothing. Another machine gets a file of its own beside it.
    """
    if not captured or nvram_of(root) == captured or not any(one.tag == f"{_TAG}nvram" for one in kept):
        return
    system = root.find("os")
    if system is None:
        raise SourceError(f"VM {root.findtext('name')}: its captured definition has no <os>")
    element = system.find("nvram")
    if element is None:
        element = ET.SubElement(system, "nvram")
    path = Path(captured)
    element.text = str(path.with_name(f"{root.findtext('name')}_VARS{path.suffix}"))


def put(connection: Connection, root: ET.Element, kept: Sequence[ET.Element]) -> list[Change]:
    """Write the files that belong to a VM that was just defined.

    Returns:
        What was written, and what could not be: the VM is restored without it.
    """
    changes = []
    nvram = next((one for one in kept if one.tag == f"{_TAG}nvram"), None)
    if nvram is not None and nvram_of(root):
        path = Path(nvram_of(root))
        changes.append(_written("nvram", path, {path: _unpacked(nvram)}))
    tpm = [one for one in kept if one.tag == f"{_TAG}tpm"]
    if tpm:
        folder = _tpm_folder(connection, root)
        changes.append(_written("tpm", folder, {folder / one.get("file", ""): _unpacked(one) for one in tpm}))
    return changes


def nvram_of(root: ET.Element) -> str:
    """Return the path of a domain's UEFI settings; empty where it has none yet."""
    element = root.find("os/nvram")
    if element is None:
        return ""
    source = element.find("source")
    return (source.get("file", "") if source is not None else element.text or "").strip()


def _collect_nvram(connection: Connection, root: ET.Element, *, running: bool) -> Iterator[str]:
    path = nvram_of(root)
    if not path:
        return
    try:
        own(root).append(_packed("nvram", _read(connection, Path(path))))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not running:
            return  # it is made from its template when the VM is started for the first time
        yield (
            f"its UEFI settings ({path}) are not saved: {error.strerror}; "
            "restored, it boots what its disk's fallback loader boots"
        )


def _collect_tpm(connection: Connection, root: ET.Element, *, running: bool) -> Iterator[str]:
    if root.find("devices/tpm/backend[@type='emulator']") is None:
        return
    folder = _tpm_folder(connection, root)
    try:
        # The other file, `.volatilestate`, is of a guest that was suspended: of no use here.
        files = sorted(folder.rglob("*.permall"))
        for path in files:
            element = _packed("tpm", _read(connection, path))
            element.set("file", str(path.relative_to(folder)))
            own(root).append(element)
        if not files and (running or is_remote(connection.uri)):
            yield f"the state of its TPM ({folder}) is not saved: nothing that can be read is there"
    except OSError as error:
        yield f"the state of its TPM ({folder}) is not saved: {error.strerror}"


def _collect_networks(connection: Connection, root: ET.Element) -> None:
    for name in sorted(_networks(root)):
        with contextlib.suppress(libvirt.libvirtError, VmkeepError):  # a VM may be on one that is gone
            network = connection.get().networkLookupByName(name)
            element = ET.SubElement(own(root), f"{_TAG}network")
            element.set("autostart", "yes" if network.autostart() else "no")
            xml = parse(network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE), what=f"network {name}")
            for bridge in xml.findall("mac"):  # another one is as good, and no two bridges share one
                xml.remove(bridge)
            element.append(xml)


def _make_networks(connection: Connection, root: ET.Element, kept: Sequence[ET.Element]) -> Iterator[Change]:
    captured = {
        xml.findtext("name", ""): (xml, one.get("autostart") == "yes")
        for one in kept
        if one.tag == f"{_TAG}network" and (xml := one.find("network")) is not None
    }
    for name in sorted(_networks(root) & set(captured)):
        try:
            with translated(f"network {name}"):
                connection.get().networkLookupByName(name)
        except NotFoundError:
            xml, autostart = captured[name]
            _make_network(connection, name, xml, autostart=autostart)
            yield Change(f"network {name}", None, "made as it was captured", applied=True)


def _make_network(connection: Connection, name: str, xml: ET.Element, *, autostart: bool) -> None:
    try:
        network = connection.get().networkDefineXML(to_text(xml))
    except libvirt.libvirtError as error:
        raise InputError(f"network {name} is not here, and cannot be made as it was: {error}") from error
    try:
        network.create()
        network.setAutostart(autostart)
    except libvirt.libvirtError as error:
        with contextlib.suppress(libvirt.libvirtError):
            network.undefine()
        raise InputError(
            f"network {name} is not here, and cannot be started as it was ({error}): make one of that name "
            "with 'virsh net-define' and 'virsh net-start', then try again"
        ) from error


def _written(what: str, where: Path, files: dict[Path, bytes]) -> Change:
    try:
        for path, body in files.items():
            if what == "tpm":
                path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, body)
    except OSError as error:
        return Change(what, "as captured", f"NOT written to {where}: {error.strerror}", applied=False)
    return Change(what, "as captured", f"written to {where}", applied=True)


def _write(path: Path, body: bytes) -> None:
    """Replace a file; libvirt gives it to QEMU's user when the VM starts."""
    new = path.with_name(f".{path.name}.vmkeep")
    try:
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_bytes(body)
        if path.exists():
            status = path.stat()
            os.chown(new, status.st_uid, status.st_gid)
            shutil.copymode(path, new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _tpm_folder(connection: Connection, root: ET.Element) -> Path:
    if "/session" in connection.uri:
        return Path.home() / ".config/libvirt/qemu/swtpm" / read(root).uuid
    return SYSTEM / read(root).uuid


def _networks(root: ET.Element) -> set[str]:
    sources = root.findall("devices/interface[@type='network']/source")
    return {source.get("network", "") for source in sources} - {""}


def _read(connection: Connection, path: Path) -> bytes:
    if is_remote(connection.uri):
        raise OSError(0, "it is on another host; run vmkeep there")
    if path.stat().st_size > _LARGEST:
        raise OSError(0, f"it is larger than {_LARGEST} bytes")
    return path.read_bytes()


def _packed(tag: str, body: bytes) -> ET.Element:
    element = ET.Element(f"{_TAG}{tag}")
    element.text = base64.b64encode(zlib.compress(body, 9)).decode("ascii")
    return element


def _unpacked(element: ET.Element) -> bytes:
    try:
        return zlib.decompressobj().decompress(base64.b64decode(element.text or ""), _LARGEST)
    except (ValueError, zlib.error) as error:
        raise SourceError(f"the captured definition is damaged: {element.tag}: {error}") from error
