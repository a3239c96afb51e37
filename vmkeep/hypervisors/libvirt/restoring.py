"""What a domain's metadata says about disks that are being restored.

    <vmkeep:restoring disk="root" path="/images/db1-root.1.qcow2" ... maker="4711 ..."/>   not in place yet
    <vmkeep:replaced path="/images/db1-root.qcow2"/>                                       not any more
    <vmkeep:streaming disk="root" path="/images/db1-root.1.qcow2" socket="/run/vmkeep/served/db1/nbd" .../>

What was replaced is kept as long as a disk is streaming: see `streams`.

The domain's definition is replaced by libvirt as a whole, and so is the decision which disks are in place:
whenever a restore is killed, the metadata still names every file that is to be removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree as ET

from vmkeep.disks import maker
from vmkeep.errors import TemporaryError
from vmkeep.hypervisors.libvirt.machine import NAMESPACE, own

if TYPE_CHECKING:
    from collections.abc import Iterable

_RESTORING = f"{{{NAMESPACE}}}restoring"
_REPLACED = f"{{{NAMESPACE}}}replaced"
_STREAMING = f"{{{NAMESPACE}}}streaming"


@dataclass(frozen=True, slots=True)
class Mark:
    """A disk whose data streams in."""

    disk: str
    path: Path
    """The overlay."""
    socket: Path
    export: str
    """What it lies over: the server's socket, and the disk's name there."""
    on_error: str
    """The `error_policy` of its driver before; empty: none was said."""
    on_read_error: str
    """The `rerror_policy`."""
    guarded: bool = False
    """Whether the domain is defined so that only vmkeep starts it again."""

    @property
    def uri(self) -> str:
        """What it lies over, as QEMU names it."""
        return uri(self.socket, self.export)

    @property
    def guard(self) -> Path:
        """A file that is never there, which the domain is said to lie on."""
        return self.path.with_name(f"{self.path.name}.vmkeep-is-streaming")


def uri(socket: Path, export: str) -> str:
    """Return how QEMU names a disk at an NBD server."""
    return f"nbd+unix:///{quote(export)}?socket={quote(str(socket))}"


def restoring(root: ET.Element) -> dict[str, tuple[Path, str]]:
    """Return the path and format of each new disk that is not in place, by the disk's name."""
    return {
        one.get("disk", ""): (Path(one.get("path", "")), one.get("format", "raw"))
        for one in root.iter(_RESTORING)
    }


def note_restoring(root: ET.Element, disk: str, path: Path, format: str) -> None:  # noqa: A002
    """Say that a file is to become a disk."""
    fields = {"disk": disk, "path": str(path), "format": format, "maker": maker.me()}
    ET.SubElement(own(root), _RESTORING, fields)


def makers(root: ET.Element) -> dict[str, list[str]]:
    """Return the new disks that are not in place, by the process that makes them."""
    found: dict[str, list[str]] = {}
    for one in root.iter(_RESTORING):
        found.setdefault(one.get("maker", ""), []).append(one.get("disk", ""))
    return found


def forget_restoring(root: ET.Element, disks: Iterable[str]) -> None:
    """Say no more that these disks are being restored."""
    ours = own(root)
    for one in ours.findall(_RESTORING):
        if one.get("disk") in set(disks):
            ours.remove(one)


def replaced(root: ET.Element) -> list[Path]:
    """Return the files that were replaced, and are to be removed."""
    return [Path(one.get("path", "")) for one in root.iter(_REPLACED)]


def note_replaced(root: ET.Element, paths: Iterable[Path]) -> None:
    """Say which files were replaced; without any, none is to be removed any more."""
    ours = own(root)
    for old in ours.findall(_REPLACED):
        ours.remove(old)
    for path in paths:
        ET.SubElement(ours, _REPLACED, {"path": str(path)})


def streaming(root: ET.Element) -> list[Mark]:
    """Return the disks whose data streams in."""
    return [
        Mark(
            one.get("disk", ""),
            Path(one.get("path", "")),
            Path(one.get("socket", "")),
            one.get("export", ""),
            one.get("on_error", ""),
            one.get("on_read_error", ""),
            one.get("guarded") == "yes",
        )
        for one in root.iter(_STREAMING)
    ]


def note_streaming(root: ET.Element, mark: Mark) -> None:
    """Say that the data of a disk is to stream in."""
    fields = {
        "disk": mark.disk, "path": str(mark.path), "socket": str(mark.socket), "export": mark.export,
        "on_error": mark.on_error, "on_read_error": mark.on_read_error,
        "guarded": "yes" if mark.guarded else "no",
    }  # fmt: skip
    ET.SubElement(own(root), _STREAMING, fields)


def forget_streaming(root: ET.Element, disks: Iterable[str] | None = None) -> None:
    """Say no more that the data of these disks, or of all, streams in."""
    ours = own(root)
    gone = None if disks is None else set(disks)
    for one in ours.findall(_STREAMING):
        if gone is None or one.get("disk") in gone:
            ours.remove(one)


def require_whole(root: ET.Element) -> None:
    """Check that all data of a domain's disks is on them.

    Raises:
        TemporaryError: some still streams in from a recovery point.
    """
    marks = streaming(root)
    if marks:
        name = root.findtext("name", "")
        disks = ", ".join(mark.disk for mark in marks)
        raise TemporaryError(
            f"VM {name} was restored instantly, and not all data of {disks} has streamed in yet: try again "
            f"when it has; 'vmkeep stream {name}' shows it, and goes on where it was interrupted"
        )
