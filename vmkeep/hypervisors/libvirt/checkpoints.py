"""Checkpoints: what QEMU remembers of a disk's changes, by the name that a recovery point knows.

    vmkeep-shop-20261124T221500Z-1a2b3c4d      ours, of the fleet shop

All that may be wrong with one makes it lost, and the disk is read in full: it is not there, the VM or the
disk is another one than it was made for, or QEMU says that its bitmap is broken.

A bitmap lies in the top image of a disk, travels with it, and knows only what was written there through QEMU.
So a checkpoint says, as its description, which file that was, and what lay below it, which nobody may write:

    made by vmkeep: what changes from here on {"vda": ["/images/db1.qcow2 4711", "/images/base.qcow2 12 ..."]}
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import libvirt

from vmkeep.hypervisors.libvirt.connection import translated
from vmkeep.hypervisors.libvirt.machine import disk_elements, parse, target_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from xml.etree import ElementTree as ET

_NAME: Final = re.compile(r"vmkeep-(?P<fleet>.+)-\d{8}T\d{6}Z-[0-9a-f]{8}")
_UNDECIDED: Final = 3
"""How many checkpoints of runs that made no recovery point yet are kept: such a run may be continued."""


_SAYS: Final = "made by vmkeep: what changes from here on"


def new_name(fleet: str) -> str:
    """Return the name of a new checkpoint of a fleet."""
    return f"vmkeep-{fleet}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def is_checkpoint(mark: str) -> bool:
    """Tell whether a recovery point's mark is the name of a checkpoint."""
    return _NAME.fullmatch(mark) is not None


def of_fleet(name: str, fleet: str) -> bool:
    """Tell whether a checkpoint was made by vmkeep for this fleet."""
    match = _NAME.fullmatch(name)
    return match is not None and match["fleet"] == fleet


@dataclass(frozen=True, slots=True)
class Base:
    """From where a disk's changes are known."""

    mark: str = ""
    """The checkpoint; empty: from nowhere."""
    remark: str = ""
    """Why it is none of those that recovery points know."""


class Checkpoints:
    """The checkpoints of one domain that runs now."""

    def __init__(self, domain: libvirt.virDomain, live: ET.Element) -> None:
        """Look which there are.

        Args:
            live: The domain's XML as it runs.
        """
        self._domain = domain
        self._uuid = live.findtext("uuid", "")
        self._sources = {target_of(disk): _source(disk) for disk in disk_elements(live)}
        self._lies = _lying(live)
        self._seen: dict[str, ET.Element] = {}
        """The XML of checkpoints that were looked at."""
        self._broken: set[str] = set()
        with translated(f"VM {domain.name()}: checkpoints"):
            flags = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL
            self._known = {one.getName(): one for one in domain.listAllCheckpoints(flags)}

    def base(self, target: str, marks: Sequence[str]) -> Base:
        """Return the newest of *marks* from which all changes of a disk are known."""
        wrong = ""
        for mark in marks:
            if not is_checkpoint(mark):
                continue
            reason = self._reason(mark, target)
            if not reason:
                return Base(mark)
            wrong = wrong or f"checkpoint {mark} is lost ({reason})"
        return Base(remark=wrong)

    def tidy(self, fleet: str, keep: Iterable[str]) -> None:
        """Remove what no later backup of the fleet needs; foreign checkpoints stay.

        Args:
            keep: Those that the next backup builds on. Older ones go, and younger ones but the last few.
        """
        ours = [name for name in self._known if of_fleet(name, fleet)]
        needed = set(keep) & set(ours)
        oldest = min((ours.index(name) for name in needed), default=0)
        spared = {*needed, *[name for name in ours[oldest:] if name not in self._broken][-_UNDECIDED:]}
        for name in ours:
            if name not in spared:
                _delete(self._known.pop(name))

    def _reason(self, mark: str, target: str) -> str:
        """Return why the checkpoint is of no use for a disk, or nothing."""
        checkpoint = self._known.get(mark)
        if checkpoint is None:
            return "it is not there: the VM was defined anew, moved, or someone removed it"
        if mark not in self._seen:
            self._seen[mark] = _described(checkpoint)
        root = self._seen[mark]
        disk = root.find(f"disks/disk[@name='{target}']")
        if disk is None or disk.get("checkpoint") != "bitmap":
            return f"it does not cover {target}"
        if disk.get("size") is None:
            self._broken.add(mark)
            return "QEMU cannot count what changed since: its bitmap is missing, or QEMU was killed"
        domain = root.find("domain")
        if domain is None or domain.findtext("uuid") != self._uuid:
            return "it was made for another VM"
        before = {target_of(one): _source(one) for one in disk_elements(domain)}
        if before.get(target) != self._sources.get(target):
            return f"{target} lies elsewhere now: it was restored, moved or replaced"
        return _moved(target, _said(root.findtext("description", "")).get(target), self._lies.get(target))


def evidence(live: ET.Element) -> str:
    """Return what a checkpoint that is made now is to say of itself.

    Args:
        live: the domain's XML as it runs.
    """
    return f"{_SAYS} {json.dumps(_lying(live), sort_keys=True)}"


def forget(domain: libvirt.virDomain) -> None:
    """Forget all of vmkeep's checkpoints of a domain whose disks are replaced."""
    for checkpoint in domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL):
        if is_checkpoint(checkpoint.getName()):
            with contextlib.suppress(libvirt.libvirtError):  # of no harm: it does not fit the new disks
                checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _said(description: str) -> dict[str, list[str]]:
    """Return what a checkpoint says of itself; nothing, if it is none of this version's."""
    says, _, listed = description.partition(" {")
    with contextlib.suppress(ValueError, AttributeError):
        if says == _SAYS:
            return dict(json.loads("{" + listed))
    return {}


def _moved(target: str, before: list[str] | None, now: list[str] | None) -> str:
    """Return why the files of a disk are not those that a checkpoint was made on, or nothing."""
    if not now:
        return (
            f"{target} cannot be watched: an image of it is no file that is seen, or keeps its data elsewhere"
        )
    if not before:
        return f"it does not say on which files {target} lay"
    if before[0] != now[0]:
        return f"the image of {target} is another file: it was replaced"
    if before != now:
        return f"what lies below the image of {target} was changed or replaced"
    return ""


def _lying(live: ET.Element) -> dict[str, list[str]]:
    """Return on which files the disks lie, the top one first; nothing for a disk that cannot be watched."""
    return {target_of(disk): _files(disk) for disk in disk_elements(live)}


def _files(disk: ET.Element) -> list[str]:
    found: list[str] = []
    layer: ET.Element | None = disk
    while layer is not None and (source := layer.find("source")) is not None:
        path = Path(source.get("file", ""))
        try:
            status = path.stat() if path.is_absolute() else None
            if status and _keeps_data_elsewhere(path):
                return []  # others may write there, past the bitmaps
        except OSError:
            status = None
        if not found:  # what is written to it is known by its bitmap
            found.append(f"{path} {status.st_ino}" if status else "not a file that can be seen")
        elif status:
            # Not the time at which its owner changed: libvirt gives images to QEMU's user and back.
            found.append(f"{path} {status.st_ino} {status.st_size} {status.st_mtime_ns}")
        else:
            return []
        layer = layer.find("backingStore")
    return found


def _keeps_data_elsewhere(path: Path) -> bool:
    """Tell whether an image is a qcow2 with an external data file.

    See: QEMU, docs/interop/qcow2.txt, incompatible features, bit 2.
    """
    with path.open("rb") as file:
        head = file.read(80)
    version, features = int.from_bytes(head[4:8]), int.from_bytes(head[72:80])
    return head[:4] == b"QFI\xfb" and version >= 3 and bool(features & 1 << 2)


def _described(checkpoint: libvirt.virDomainCheckpoint) -> ET.Element:
    """Return a checkpoint's XML; a disk whose bitmap is broken has no size in it."""
    what = f"checkpoint {checkpoint.getName()}"
    with translated(what):
        return parse(checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE), what=what)


def _delete(checkpoint: libvirt.virDomainCheckpoint) -> None:
    try:
        checkpoint.delete()
    except libvirt.libvirtError:
        # A broken one cannot be merged into the one before. What is left of it in the image is small.
        with contextlib.suppress(libvirt.libvirtError):
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _source(disk: ET.Element) -> tuple[tuple[str, str], ...]:
    """Return where a disk lies, as libvirt says it."""
    source = disk.find("source")
    return (
        tuple(sorted((k, v) for k, v in source.attrib.items() if k != "index")) if source is not None else ()
    )
