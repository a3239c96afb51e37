"""A saved file tree as a tar archive (pax), for people without vmkeep or without root."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from typing import IO, TYPE_CHECKING, Final

from vmkeep.components.files import CATALOGUE, CONTENT
from vmkeep.components.tree_restore import Content, entries
from vmkeep.errors import InputError
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.components.base import StreamReader
    from vmkeep.components.catalogue import Entry
    from vmkeep.repository.manifest import SavedComponent

_TYPES: Final = {
    "folder": tarfile.DIRTYPE,
    "file": tarfile.REGTYPE,
    "link": tarfile.SYMTYPE,
    "character": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
}
# What GNU tar (--xattrs) and bsdtar read and write.
_XATTR: Final = "SCHILY.xattr."


def export_tar(reader: StreamReader, saved: SavedComponent, file: IO[bytes]) -> int:
    """Write the files of a component as a pax archive; return how many entries.

    Owners, permissions, times, hard links, devices, access control lists and capabilities are in it;
    holes are written out as zeros. Sockets are left out, as every tar does.

    Raises:
        InputError: the component was saved as whole disks.
        IntegrityError: stored data is damaged.
    """
    if CATALOGUE not in saved.streams:
        raise InputError(f"{saved.name} was saved as whole disks: there are no files to export")
    count = 0
    with (
        contextlib.closing(Content(reader, saved.streams[CONTENT])) as content,
        tarfile.open(
            fileobj=file, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as archive,
    ):
        for entry in entries(reader, saved.streams[CATALOGUE]):
            if entry.kind in _TYPES:
                member = _member(entry)
                data = _Data(content, entry) if member.isreg() else None
                archive.addfile(member, io.BufferedReader(data, MiB) if data else None)
                count += 1
    return count


def _member(entry: Entry) -> tarfile.TarInfo:
    member = tarfile.TarInfo(_name(entry.path))
    member.type = tarfile.LNKTYPE if entry.same_as is not None else _TYPES[entry.kind]
    member.mode, member.uid, member.gid = entry.mode, entry.uid, entry.gid
    member.mtime = entry.mtime_ns // 10**9
    member.size = entry.size if member.isreg() else 0
    member.devmajor, member.devminor = entry.device
    if entry.same_as is not None:
        member.linkname = _name(entry.same_as)
    elif entry.kind == "link":
        member.linkname = os.fsdecode(entry.target)
    headers = {_XATTR + os.fsdecode(name): os.fsdecode(value) for name, value in entry.xattrs.items()}
    if entry.mtime_ns % 10**9:
        headers["mtime"] = f"{entry.mtime_ns // 10**9}.{entry.mtime_ns % 10**9:09d}"
    member.pax_headers = headers
    return member


def _name(path: tuple[bytes, ...]) -> str:
    return os.fsdecode(b"/".join(path))


class _Data(io.RawIOBase):
    """The bytes of a saved file, with its holes as zeros."""

    def __init__(self, content: Content, entry: Entry) -> None:
        self._parts = self._ranges(content, entry)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill as much of *buffer* as is at hand."""
        if not self._rest:
            self._rest = next(self._parts, memoryview(b""))
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def _ranges(self, content: Content, entry: Entry) -> Iterator[memoryview]:
        at = 0
        for offset, start, length in entry.extents:
            yield from _zeros(offset - at)
            yield from content.read(start, length)
            at = offset + length
        yield from _zeros(entry.size - at)


def _zeros(length: int) -> Iterator[memoryview]:
    block = memoryview(bytes(min(MiB, length)))
    while length > 0:
        yield block[: min(len(block), length)]
        length -= len(block)
