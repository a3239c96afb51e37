"""What a domain's definition says while data streams into its disks, so that no crash loses any. No I/O.

QEMU takes an overlay's reference to the server away when a block job has copied all, but what it copied may
still be in its memory then. If it dies in this moment, the overlay looks complete and is not: who starts the
VM from it reads zeros. So while a job may run, the definition that the next start goes by names a file that
is never there. vmkeep starts the VM all the same, after it gave the overlay its reference back, and lets
the definition be as it should when QEMU has written all.

    overlay, no job yet     may be started by anyone while its server is there
    a job may run           guarded: the definition names db1-root.qcow2.vmkeep-is-streaming
    all is in, and written  as any other VM

A VM stands still when its server is away, as it would when a disk is full: its guest would take an error for
a broken disk. Before a job has begun it is resumed when the server is back. After that it is started anew:
QEMU 7.2 takes the job's filter away when the job fails, and if reads of the guest have failed with it, it
dies, or answers them with wrong data when they are tried again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.errors import SourceError
from vmkeep.hypervisors.libvirt import restoring
from vmkeep.hypervisors.libvirt.machine import disk_elements, read, target_of

if TYPE_CHECKING:
    from pathlib import Path
    from xml.etree import ElementTree as ET

    from vmkeep.hypervisors.base import ServedDisk


def begin(root: ET.Element, disk: str, path: Path, over: ServedDisk) -> None:
    """Note that a disk is an overlay, and let the VM stand still when its server is away."""
    element = _element(root, disk)
    driver = element.find("driver") if element is not None else None
    if driver is None:
        raise SourceError(f"VM {root.findtext('name')} has no disk {disk}")
    policies = driver.get("error_policy", ""), driver.get("rerror_policy", "")
    restoring.note_streaming(root, restoring.Mark(disk, path, over.socket, over.export, *policies))
    driver.set("error_policy", "stop")
    driver.set("rerror_policy", "stop")


def end(root: ET.Element, mark: restoring.Mark) -> None:
    """Undo `begin`."""
    restoring.forget_streaming(root, [mark.disk])
    element = _element(root, mark.disk)
    driver = element.find("driver") if element is not None else None
    if driver is None:  # somebody took the disk away
        return
    for key, value in (("error_policy", mark.on_error), ("rerror_policy", mark.on_read_error)):
        if value:
            driver.set(key, value)
        else:
            driver.attrib.pop(key, None)


def raise_(root: ET.Element) -> None:
    """Let guarded disks lie on files that are not there."""
    for mark in restoring.streaming(root):
        if mark.guarded:
            _lay(root, mark.disk, mark.path, mark.guard)


def lower(root: ET.Element) -> None:
    """Let them lie on their overlays."""
    for mark in restoring.streaming(root):
        _lay(root, mark.disk, mark.guard, mark.path)


def _lay(root: ET.Element, disk: str, old: Path, new: Path) -> None:
    element = _element(root, disk)
    source = element.find("source") if element is not None else None
    if source is not None and source.get("file") == str(old):
        source.set("file", str(new))


def _element(root: ET.Element, disk: str) -> ET.Element | None:
    present = read(root).disk(disk)
    if present is None:
        return None
    return next((one for one in disk_elements(root) if target_of(one) == present.target), None)
