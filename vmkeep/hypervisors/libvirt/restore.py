"""Restoring domains: defined from what was captured, their disks written beside the present ones."""

from __future__ import annotations

import contextlib
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import libvirt

from vmkeep.disks import images, journal, locking, qemu_img
from vmkeep.errors import (
    AccessError,
    InputError,
    NotFoundError,
    SourceChangedError,
    SourceError,
    VmkeepError,
)
from vmkeep.hypervisors.base import AS_IT_WAS
from vmkeep.hypervisors.drilled import require_copy, require_mark
from vmkeep.hypervisors.libvirt import (
    adapt,
    belongings,
    build,
    checkpoints,
    guard,
    kept_pools,
    pools,
    restoring,
)
from vmkeep.hypervisors.libvirt import drill as drills
from vmkeep.hypervisors.libvirt.connection import translated
from vmkeep.hypervisors.libvirt.machine import disk_elements, parse, read, target_of, to_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from xml.etree import ElementTree as ET

    from vmkeep.disks.device import DiskTarget
    from vmkeep.hypervisors.base import Change, Elsewhere, ServedDisk
    from vmkeep.hypervisors.libvirt.connection import Connection
    from vmkeep.hypervisors.libvirt.machine import Machine

SECURE: Final = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE


class Restore:
    """Defines domains and replaces their disks. Safe to use from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._drills = drills.Drill(connection)
        self._lock = threading.RLock()

    def create(
        self,
        name: str,
        definition: str,
        *,
        overwrite: bool,
        drill: str | None = None,
        elsewhere: Elsewhere = AS_IT_WAS,
    ) -> list[Change]:
        """Define a domain as it was captured; return what had to be adapted."""
        if not definition.lstrip().startswith("<"):
            raise InputError(
                f"VM {name}: its recovery point is of a VM that was not of libvirt: create it with "
                "'vmkeep configure', then restore its disks into it"
            )
        root = parse(definition, what=f"the captured definition of VM {name}")
        # What was half restored when it was captured is nothing to go by now.
        restoring.forget_restoring(root, [*restoring.restoring(root)])
        restoring.note_replaced(root, [])
        restoring.forget_streaming(root)
        drills.unmark(root)
        kept = belongings.take(root)
        captured = read(root)
        nvram = belongings.nvram_of(root)
        adapt.keep_names(root, captured)
        with self._lock:
            domain = self._connection.find_domain(name)
            if drill is not None:
                require_copy(name, captured.name)
                if domain is not None:
                    require_mark(name, drills.drill_of(self._xml(domain)), drill)
                    return []
            if domain is not None and not overwrite:
                raise InputError(
                    f"VM {name} exists already at {self._connection.uri}: say overwrite, "
                    "or restore under another name"
                )
            if domain is not None and elsewhere.storage is not None:
                raise InputError(
                    f"VM {name} exists, and its disks stay where they are: restore it under another name to "
                    f"have them in storage {elsewhere.storage}"
                )
            changes = [*adapt.rename(root, name)] if name != captured.name else []
            changes += adapt.connect(root, elsewhere.networks)
            before = None
            if domain is not None:
                before = self._finished(domain)
                self._require_off(domain)
                changes += adapt.identify(root, domain.UUIDString())
            else:
                changes += self._identity(root)
            if drill is None and elsewhere.storage is None:  # a drill leaves nothing behind
                changes += kept_pools.make(self._connection, kept, _where_they_lay(captured, before))
            changes += adapt.place_disks(root, self._paths(name, captured, before, kept, elsewhere.storage))
            if before is not None:
                _take_over(root, before)
            if drill is not None:  # first: none of the networks that it was on is of any concern now
                changes += self._drills.attach(root, captured.name, drill)
            changes += belongings.prepare(self._connection, root, kept)
            belongings.point(root, kept, nvram)
            self._define(root)
            # Now it is known whose the files are: whoever removes the VM removes them, too.
            changes += belongings.put(self._connection, root, kept)
        return changes

    def create_disk(self, name: str, disk: str, *, size: int, format: str) -> DiskTarget:  # noqa: A002
        """Make the image that becomes a disk; it is noted before it is made."""
        if format not in pools.FORMATS:
            raise InputError(
                f"VM {name}: disk {disk}: format {format!r} is none of {', '.join(pools.FORMATS)}, "
                "which libvirt can run VMs on"
            )
        with self._lock:
            domain = self._connection.domain(name)
            root = self._discarded(domain, [disk])
            path = self._new_file(root, name, disk, format)
            restoring.note_restoring(root, disk, path, format)
            self._define(root)
            try:
                return images.ImageTarget(path, format, size=size, what=f"VM {name}: disk {disk}")
            except PermissionError as error:
                raise AccessError(
                    f"VM {name}: disk {disk}: {path.parent} cannot be written by this user: restore as root"
                ) from error

    def overlay_disks(self, name: str, disks: Mapping[str, ServedDisk]) -> None:
        """Let the domain lie on overlays over served disks; nothing of these is read here."""
        with self._lock:
            domain = self._connection.domain(name)
            root = self._discarded(domain, [*disks])
            for disk in disks:
                path = self._new_file(root, name, disk, "qcow2")
                restoring.note_restoring(root, disk, path, "qcow2")
            self._define(root)
            try:
                for disk, (path, _) in restoring.restoring(root).items():
                    if disk in disks:
                        one = disks[disk]
                        qemu_img.create_over(path, restoring.uri(one.socket, one.export), one.size)
                self.commit_disks(name, [*disks], served=disks)
            except BaseException:
                with contextlib.suppress(VmkeepError):
                    self.discard_disks(name, [*disks])  # nothing, if they are in place
                raise

    def commit_disks(
        self, name: str, disks: Sequence[str], *, served: Mapping[str, ServedDisk] | None = None
    ) -> None:
        """Let the domain lie on its new disks, all or none: one definition takes the place of another.

        Args:
            served: What new disks are overlays over. What is replaced then stays for now.
        """
        served = served or {}
        with self._lock, contextlib.ExitStack() as locks:
            domain = self._connection.domain(name)
            root = self._finished(domain)
            self._require_off(domain)
            new = restoring.restoring(root)
            lacking = [disk for disk in disks if disk not in new or not new[disk][0].exists()]
            if lacking:
                raise SourceError(
                    f"VM {name}: disk {', '.join(lacking)} was not restored: nothing to put in place"
                )
            old = self._replaceable(name, read(root), disks)
            for disk, path in old.items():
                what = f"VM {name}: disk {disk} ({path})"
                locks.enter_context(locking.locked(path, what=what, write=True))
            for disk in disks:
                _put(root, disk, *new[disk])
                journal.flush_folder(new[disk][0].parent)
            restoring.forget_restoring(root, disks)
            # An overlay that never got all of its data, and is replaced, goes like what it replaced.
            restoring.forget_streaming(root, disks)
            restoring.note_replaced(root, [*restoring.replaced(root), *old.values()])
            for disk, over in served.items():
                guard.begin(root, disk, new[disk][0], over)
            self._define(root)
            locks.close()
            checkpoints.forget(domain)
            self._finished(domain)
            for disk in disks:
                with contextlib.suppress(libvirt.libvirtError):  # the pool's list is for people
                    pools.refresh(self._connection, new[disk][0])

    def guard_streams(self, name: str, *, up: bool) -> ET.Element:
        """Let only vmkeep start the domain from now on, or let it be started; return its definition."""
        with self._lock:
            domain = self._connection.domain(name)
            root = self._xml(domain)
            marks = restoring.streaming(root)
            if any(mark.guarded is not up for mark in marks):
                restoring.forget_streaming(root)
                for mark in marks:
                    restoring.note_streaming(root, replace(mark, guarded=up))
                self._define(root)
                guard.lower(root)
            return root

    def finish_streams(self, name: str) -> None:
        """Forget that data was streaming in, and remove what the overlays replaced."""
        with self._lock:
            domain = self._connection.domain(name)
            root = self._xml(domain)
            marks = restoring.streaming(root)
            if not marks:
                return
            for mark in marks:
                guard.end(root, mark)
            self._define(root)
            self._finished(domain)

    def discard_disks(self, name: str, disks: Sequence[str]) -> None:
        """Remove new images that were not put in place."""
        with self._lock:
            domain = self._connection.find_domain(name)
            if domain is not None:
                self._discarded(domain, disks)

    def _new_file(self, root: ET.Element, name: str, disk: str, format: str) -> Path:  # noqa: A002
        """Return where a new image of a disk is made: beside the present one, or in the default pool."""
        present = read(root).disk(disk)
        where = present.path.parent if present and present.path else pools.folder(self._connection, None)
        taken = _paths_in(root) - ({present.path} if present else set())
        return _free_file(where, name, disk, format, taken=taken)

    def _discarded(self, domain: libvirt.virDomain, disks: Sequence[str]) -> ET.Element:
        root = self._finished(domain)
        found = [disk for disk in restoring.restoring(root) if disk in disks]
        for disk in found:
            path, _ = restoring.restoring(root)[disk]
            if path.exists():
                what = f"VM {domain.name()}: disk {disk} ({path})"
                with locking.locked(path, what=what, write=True):
                    path.unlink()
        if found:
            restoring.forget_restoring(root, found)
            self._define(root)
        return root

    def _finished(self, domain: libvirt.virDomain) -> ET.Element:
        """Remove what an earlier commit replaced and is not needed; return the domain's definition."""
        root = self._xml(domain)
        paths = restoring.replaced(root)
        if paths and not restoring.streaming(root):
            present = {disk.path for disk in read(root).disks}
            for path in paths:
                if path not in present:
                    path.unlink(missing_ok=True)
            restoring.note_replaced(root, [])
            self._define(root)
        return root

    def _paths(
        self,
        name: str,
        captured: Machine,
        before: ET.Element | None,
        kept: Sequence[ET.Element],
        storage: str | None,
    ) -> dict[str, Path]:
        """Return the file of each disk: where the VM has it now, or one that nobody has."""
        result: dict[str, Path] = {}
        machine = read(before) if before is not None else None
        of_pools = kept_pools.folders(kept)
        for disk in captured.disks:
            present = machine.disk(disk.name) if machine else None
            if present is not None and present.path is not None:
                result[disk.name] = present.path
                continue
            folder = disk.path.parent if disk.path else of_pools.get((disk.volume or ("",))[0], Path())
            if (
                storage is not None
                or not folder.is_dir()
                or folder == Path()
                or Path("/dev") in folder.parents
            ):
                folder = pools.folder(self._connection, storage)
            if name == captured.name and disk.path and not disk.path.exists() and disk.path.parent == folder:
                result[disk.name] = disk.path
            else:
                format = disk.format if disk.format in pools.FORMATS else "qcow2"  # noqa: A001
                result[disk.name] = _free_file(folder, name, disk.name, format, taken=set(result.values()))
        return result

    def _replaceable(self, name: str, machine: Machine, disks: Sequence[str]) -> dict[str, Path]:
        """Return the files of disks that are replaced: only what no other domain uses."""
        used = set()
        with translated(f"VMs at {self._connection.uri}"):
            for other in self._connection.get().listAllDomains():
                if other.name() != name:
                    used |= _paths_in(parse(other.XMLDesc(), what=f"VM {other.name()}"))
        return {
            disk.name: disk.path
            for disk in machine.disks
            if disk.name in disks and disk.path and disk.path.is_file() and disk.path not in used
        }

    def _identity(self, root: ET.Element) -> Iterator[Change]:
        """Give a domain a new UUID when another one has its own."""
        try:
            with translated("UUID"):
                self._connection.get().lookupByUUIDString(root.findtext("uuid", ""))
        except NotFoundError:
            return
        except SourceError:  # none, or no UUID
            pass
        yield from adapt.identify(root, str(uuid.uuid4()))

    def _require_off(self, domain: libvirt.virDomain) -> None:
        if domain.isActive():
            raise SourceChangedError(f"VM {domain.name()} is running: power it off first")

    def _xml(self, domain: libvirt.virDomain) -> ET.Element:
        with translated(f"VM {domain.name()}"):
            root = parse(domain.XMLDesc(SECURE), what=f"VM {domain.name()}")
        guard.lower(root)
        return root

    def _define(self, root: ET.Element) -> None:
        guard.raise_(root)
        with translated(f"VM {root.findtext('name')}: definition"):
            self._connection.get().defineXML(to_text(root))


def _put(root: ET.Element, disk: str, path: Path, format: str) -> None:  # noqa: A002
    machine = read(root)
    present = machine.disk(disk)
    for element in disk_elements(root):
        if present is not None and target_of(element) == present.target:
            adapt.put(element, path, format)
            return
    build.add_disk(root, disk, path, format)


def _where_they_lay(captured: Machine, before: ET.Element | None) -> list[str]:
    """Return the disks that are to lie where they were captured."""
    present = read(before) if before is not None else None
    return [
        disk.name
        for disk in captured.disks
        if present is None
        or (one := present.disk(disk.name)) is None
        or (one.path is not None and disk.path is not None and one.path.parent == disk.path.parent)
    ]


def _take_over(root: ET.Element, before: ET.Element) -> None:
    """Keep the disks that the present domain has and the captured one had not, and what is being restored."""
    captured, present = read(root), read(before)
    for disk, (path, format) in restoring.restoring(before).items():  # noqa: A001
        restoring.note_restoring(root, disk, path, format)
    restoring.note_replaced(root, restoring.replaced(before))
    for mark in restoring.streaming(before):
        restoring.note_streaming(root, mark)
    for one in present.disks:
        if captured.disk(one.name) is None and one.path is not None:
            build.add_disk(root, one.name, one.path, one.format)


def _paths_in(root: ET.Element) -> set[Path]:
    found = {disk.path for disk in read(root).disks if disk.path}
    return found | {path for path, _ in restoring.restoring(root).values()}


def _free_file(folder: Path, vm: str, disk: str, format: str, *, taken: set[Path]) -> Path:  # noqa: A002
    """Return the first of `vm-disk.format`, `vm-disk.1.format`, ... that nobody has."""
    path = folder / f"{vm}-{disk}.{format}"
    count = 0
    while path.exists() or path in taken:
        count += 1
        path = folder / f"{vm}-{disk}.{count}.{format}"
    return path
