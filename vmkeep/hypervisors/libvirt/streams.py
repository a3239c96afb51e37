"""Domains that run on overlays over an NBD server, and QEMU's block jobs that copy the rest into these.

Whether an overlay still needs the server says its own header, as long as the QEMU runs that wrote it; after
that it is only believed when QEMU is known to have written all (see `guard`).
"""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import libvirt

from vmkeep.disks import qemu_img
from vmkeep.errors import AccessError, SourceError
from vmkeep.hypervisors.base import Behind
from vmkeep.hypervisors.libvirt import restoring
from vmkeep.hypervisors.libvirt.connection import translated
from vmkeep.hypervisors.libvirt.machine import disk_elements, parse, read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from xml.etree import ElementTree as ET

    from vmkeep.hypervisors.base import ServedDisk
    from vmkeep.hypervisors.libvirt.connection import Connection
    from vmkeep.hypervisors.libvirt.machine import Disk
    from vmkeep.hypervisors.libvirt.restore import Restore

_SYSTEM: Final = Path("/run/vmkeep")
"""Where sockets lie that QEMU connects to, on a host whose libvirt is the system's."""
_STANDS_STILL: Final = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]
_CRASHED: Final = [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED]
_RESUMES_S: Final = 10.0
_PAUSE_S: Final = 0.25


class LibvirtStreams:
    """See `Streams`. Safe to use from several threads."""

    def __init__(self, connection: Connection, restore: Restore, *, sockets: Path | None) -> None:
        self._connection, self._restore, self._sockets = connection, restore, sockets

    def folder(self, name: str) -> Path:
        """Return the folder of the VM's socket, which only QEMU's user (and root) can enter."""
        root = self._sockets or (_SYSTEM if os.geteuid() == 0 else _own())
        path = root / "served" / name
        try:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
            if os.geteuid() == 0:
                os.chown(path, *self._user())
        except OSError as error:
            raise AccessError(f"VM {name}: cannot make {path}: {error.strerror}") from error
        return path

    def overlay(self, name: str, disks: Mapping[str, ServedDisk]) -> None:
        """Put overlays over served disks in place."""
        self._restore.overlay_disks(name, disks)

    def behind(self, name: str) -> Sequence[Behind]:
        """Return what has not streamed in, as far as that is certain."""
        domain = self._connection.find_domain(name)
        if domain is None:
            return []
        with translated(f"VM {name}"):
            root = parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), what=f"VM {name}")
            marks = restoring.streaming(root)
            if not marks or not domain.isActive():
                return [_behind(mark) for mark in marks]
            live = parse(domain.XMLDesc(), what=f"VM {name}")
        if live.get("id") is None:  # it was powered off just now
            return [_behind(mark) for mark in marks]
        machine = read(live)
        found = [(mark, machine.disk(mark.disk)) for mark in marks]
        return [
            _progress(domain, disk, mark)
            for mark, disk in found
            if disk is not None and disk.path is not None and _needs_server(disk.path, what=f"VM {name}")
        ]

    def stream(self, name: str, *, bandwidth: int = 0) -> Sequence[Behind]:
        """Begin what does not stream, let the VM go on, and tidy up when all is in and written."""
        domain = self._connection.domain(name)
        behind = self.behind(name)
        with translated(f"VM {name}: streaming"):
            if behind and not domain.isActive():
                raise SourceError(
                    f"VM {name} is powered off, and {', '.join(one.disk for one in behind)} has not streamed "
                    f"in; nothing is lost: 'vmkeep stream {name} --start' starts it, and goes on"
                )
            if not behind:
                return self._finish(domain)
            self._restore.guard_streams(name, up=True)
            root = parse(domain.XMLDesc(), what=f"VM {name}")
            disk = read(root).disk(behind[0].disk)
            if disk is not None and _is_quiet(root, behind):
                domain.blockPull(disk.target, bandwidth, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
        # Even if it is over by now, it is not finished.
        return self.behind(name) or behind

    def recover(self, name: str) -> str:
        """Let a VM go on that its server left alone.

        A read that failed while data streamed in must not be tried again by the same QEMU: see `guard`.
        """
        domain = self._connection.find_domain(name)
        if domain is None:
            return ""
        with translated(f"VM {name}: going on without its server"):
            root = parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), what=f"VM {name}")
            streamed = any(mark.guarded for mark in restoring.streaming(root))
            state = domain.state()
            if state == _STANDS_STILL and not streamed:
                return self._resume(domain)
            if state == _STANDS_STILL:
                domain.destroy()
            elif state != _CRASHED or not streamed:
                return ""
            self.let_start(name)
            domain.create()
        return "it was started anew, as after a power failure"

    def _resume(self, domain: libvirt.virDomain) -> str:
        """Resume it: the first reads fail again, and let QEMU connect."""
        deadline = time.monotonic() + _RESUMES_S
        while domain.state() == _STANDS_STILL:
            if time.monotonic() > deadline:
                raise SourceError(f"VM {domain.name()} stands still because of an error of one of its disks")
            domain.resume()
            time.sleep(_PAUSE_S)
        return "it went on"

    def let_start(self, name: str) -> None:
        """Let a domain that is powered off be started, if its data has not streamed in."""
        domain = self._connection.domain(name)
        with translated(f"VM {name}"):
            root = parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), what=f"VM {name}")
        for mark in restoring.streaming(root):
            if mark.guarded and not qemu_img.backing(mark.path, what=f"VM {name}: disk {mark.disk}"):
                qemu_img.rebase_over(mark.path, mark.uri)
        self._restore.guard_streams(name, up=False)

    def _finish(self, domain: libvirt.virDomain) -> Sequence[Behind]:
        """Let QEMU write what it has copied, and forget that anything streamed."""
        root = parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), what=f"VM {domain.name()}")
        marks = restoring.streaming(root)
        if marks and domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            return [_behind(mark, 1, 1) for mark in marks]  # somebody paused it
        if marks:
            # QEMU writes all that it has in memory when it stops its processors.
            # See: QEMU, softmmu/cpus.c, do_vm_stop.
            domain.suspend()
            domain.resume()
            self._restore.finish_streams(domain.name())
        return []

    def _user(self) -> tuple[int, int]:
        """Return the user and group that QEMU runs as.

        See: https://libvirt.org/formatcaps.html, secmodel: `+UID:+GID` for the model `dac`.
        """
        with translated(f"libvirt at {self._connection.uri}"):
            root = parse(self._connection.get().getCapabilities(), what="capabilities of libvirt")
        for model in root.iterfind("host/secmodel"):
            label = model.findtext("baselabel", "")
            if model.findtext("model") == "dac" and ":" in label:
                user, group = (int(one.lstrip("+")) for one in label.split(":"))
                return user, group
        return os.geteuid(), os.getegid()


def _is_quiet(root: ET.Element, behind: Sequence[Behind]) -> bool:
    """Tell whether the next disk may begin: none streams, and libvirt has noticed the end of those before.

    One after the other: libvirt looks at all disks when one is done, and QEMU before 9.0 may answer while it
    takes away the filter of another one, and follows a null pointer (in `bdrv_refresh_filename`).
    See: QEMU, commit effd60c8, "monitor: only run coroutine commands in qemu_aio_context".
    """
    waiting = {one.disk for one in behind}
    elements = zip(disk_elements(root), read(root).disks, strict=True)
    noticed = all(
        element.find("backingStore/source[@protocol='nbd']") is None
        for element, disk in elements
        if disk.name not in waiting
    )
    return noticed and not any(one.size for one in behind)


def _own() -> Path:
    """Return where a user's sockets lie."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "vmkeep" if runtime else Path(f"/tmp/vmkeep.{pwd.getpwuid(os.geteuid()).pw_name}")  # noqa: S108


def _needs_server(overlay: Path, *, what: str) -> bool:
    """Tell whether an overlay, or what lies below it, refers to a server."""
    while over := qemu_img.backing(overlay, what=what):
        if over.startswith("nbd"):
            return True
        overlay = overlay.parent / over  # somebody made a snapshot on top of ours
    return False


def _progress(domain: libvirt.virDomain, disk: Disk, mark: restoring.Mark) -> Behind:
    try:
        job = domain.blockJobInfo(disk.target, 0)
    except libvirt.libvirtError:  # powered off meanwhile
        job = {}
    if job.get("type") != libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL:
        return _behind(mark)
    # A job that has just begun may say 0 of 0: it is one all the same.
    return _behind(mark, job["cur"], max(job["end"], 1))


def _behind(mark: restoring.Mark, done: int = 0, size: int = 0) -> Behind:
    return Behind(mark.disk, mark.socket, done, size, mark.export)
