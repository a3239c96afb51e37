"""What a domain's metadata says about disks that are being restored.

    <vmkeep:restoring disk="root" path="/images/db1-root.1.qcow2" format="qcow2"/>   written, not in place yet
    <vmkeep:replaced path="/images/db1-root.qcow2"/>                                 not in place any more

The domain's definition is replaced by libvirt as a whole, and so is the decision which disks are in place:
whenever a restore is killed, the metadata still names every file that is to be removed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from vmkeep.hypervisors.libvirt.machine import NAMESPACE, own

if TYPE_CHECKING:
    from collections.abc import Iterable

_RESTORING = f"{{{NAMESPACE}}}restoring"
_REPLACED = f"{{{NAMESPACE}}}replaced"


def restoring(root: ET.Element) -> dict[str, tuple[Path, str]]:
    """Return the path and format of each new disk that is not in place, by the disk's name."""
    return {
        one.get("disk", ""): (Path(one.get("path", "")), one.get("format", "raw"))
        for one in root.iter(_RESTORING)
    }


def note_restoring(root: ET.Element, disk: str, path: Path, format: str) -> None:  # noqa: A002
    """Say that a file is to become a disk."""
    ET.SubElement(own(root), _RESTORING, {"disk": disk, "path": str(path), "format": format})


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
