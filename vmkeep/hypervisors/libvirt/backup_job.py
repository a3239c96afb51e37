"""QEMU's backup job in pull mode: it keeps the disks of a running VM as they are at one moment, behind NBD.

What the guest overwrites meanwhile is first copied into a scratch file beside each disk; libvirt makes and
removes it. A job ends with its VM, or when it is aborted; a client that dies does not end it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import libvirt

from vmkeep.disks import scratch
from vmkeep.errors import SourceError, TemporaryError
from vmkeep.hypervisors.libvirt.connection import translated
from vmkeep.hypervisors.libvirt.machine import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

BITMAP: Final = "vmkeep-since"
"""The name under which an export shows what changed."""
_LONGEST_SOCKET: Final = 107
"""See: unix(7), sun_path."""
_ENDS_WITHIN_S: Final = 30.0
_POLL_S: Final = 0.01
_LOST: Final = {libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT, libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT}


class CheckpointLostError(SourceError):
    """QEMU cannot tell the changes since a checkpoint after all."""


@dataclass(frozen=True, slots=True)
class NewCheckpoint:
    """A checkpoint that is to begin with the job."""

    name: str
    says: str
    """Its description: what those who build on it are to know."""


@dataclass(frozen=True, slots=True)
class JobDisk:
    """A disk of a backup job."""

    target: str
    since: str
    """A checkpoint; empty: all of it."""
    tracked: bool
    """Whether a new checkpoint covers it."""
    scratch: Path
    """Where what is overwritten goes meanwhile."""


def begin(
    domain: libvirt.virDomain,
    disks: Sequence[JobDisk],
    others: Sequence[str],
    *,
    socket: Path,
    checkpoint: NewCheckpoint | None,
) -> None:
    """Begin the job, and a checkpoint at the same moment.

    Args:
        others: Targets of disks that are left out.

    Raises:
        CheckpointLostError: the changes since one cannot be told.
        TemporaryError: another job is under way.
        SourceError: QEMU cannot do it.
    """
    what = f"VM {domain.name()}: backup job"
    if len(str(socket)) > _LONGEST_SOCKET:
        raise SourceError(
            f"{what}: the path of its socket is too long ({socket}): "
            "say a shorter folder as the hypervisor's sockets"
        )
    mark = _checkpoint_xml(checkpoint, disks, others) if checkpoint else None
    try:
        domain.backupBegin(_job_xml(disks, others, socket), mark, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _LOST:
            raise CheckpointLostError(f"{what}: {error.get_error_message()}") from error
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID and socket_of(domain) is not None:
            raise TemporaryError(
                f"{what}: another backup is under way ({socket_of(domain)}): try again when it has ended"
            ) from error
        with translated(what):
            raise


def socket_of(domain: libvirt.virDomain) -> Path | None:
    """Return the socket of the backup job that is under way; None: there is none, or it has no socket."""
    try:
        root = parse(domain.backupGetXMLDesc(), what="backup job")
    except libvirt.libvirtError:
        return None
    server = root.find("server")
    path = server.get("socket") if server is not None else None
    return Path(path) if path else None


def end(domain: libvirt.virDomain, socket: Path) -> None:
    """End the job that has this socket, and wait until it has; other jobs go on. May be repeated.

    Raises:
        TemporaryError: it is still there.
    """
    deadline = time.monotonic() + _ENDS_WITHIN_S
    if socket_of(domain) == socket:
        with translated(f"VM {domain.name()}: ending the backup job"):
            domain.abortJob()
    while socket_of(domain) == socket:
        if time.monotonic() > deadline:
            raise TemporaryError(f"VM {domain.name()}: the backup job at {socket} does not end")
        time.sleep(_POLL_S)


def end_orphan(domain: libvirt.virDomain) -> None:
    """End a job of a vmkeep that is no more."""
    socket = socket_of(domain)
    if socket is not None and scratch.is_orphan(socket.name):
        end(domain, socket)


def _job_xml(disks: Sequence[JobDisk], others: Sequence[str], socket: Path) -> str:
    root = ET.Element("domainbackup", {"mode": "pull"})
    ET.SubElement(root, "server", {"transport": "unix", "socket": str(socket)})
    listed = ET.SubElement(root, "disks")
    for disk in disks:
        fields = {"name": disk.target, "backup": "yes", "type": "file", "exportname": disk.target}
        if disk.since:
            fields |= {"backupmode": "incremental", "incremental": disk.since, "exportbitmap": BITMAP}
        else:
            fields["backupmode"] = "full"
        element = ET.SubElement(listed, "disk", fields)
        ET.SubElement(element, "driver", {"type": "qcow2"})
        ET.SubElement(element, "scratch", {"file": str(disk.scratch)})
    for target in others:
        ET.SubElement(listed, "disk", {"name": target, "backup": "no"})
    return ET.tostring(root, encoding="unicode")


def _checkpoint_xml(checkpoint: NewCheckpoint, disks: Sequence[JobDisk], others: Sequence[str]) -> str:
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = checkpoint.name
    ET.SubElement(root, "description").text = checkpoint.says
    listed = ET.SubElement(root, "disks")
    for disk in disks:
        how = "bitmap" if disk.tracked else "no"
        ET.SubElement(listed, "disk", {"name": disk.target, "checkpoint": how})
    for target in others:
        ET.SubElement(listed, "disk", {"name": target, "checkpoint": "no"})
    return ET.tostring(root, encoding="unicode")
