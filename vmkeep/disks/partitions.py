"""The partitions of a disk: GPT, MBR with logical partitions, or none.

A disk comes from a guest, so nothing in it is trusted: ranges outside of the disk are refused, and a
chain of logical partitions that bites its tail ends.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.disks.superblocks import FileSystem, identify
from vmkeep.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.disks.device import DiskSource

_SECTORS: Final = (512, 4096)
_EXTENDED: Final = {0x05, 0x0F, 0x85}
_PROTECTIVE: Final = 0xEE
_MOST_ENTRIES: Final = 1024
_MOST_LOGICAL: Final = 128
# See: UEFI specification, "GPT Header".
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of a disk, or all of one that has no partition table."""

    number: int
    """As in `/dev/vda1`; 0 for a whole disk."""
    start: int
    length: int
    """Both in bytes."""
    type: str = ""
    """A GUID (GPT), or two hex digits (MBR)."""
    uuid: str = ""
    """The PARTUUID."""
    name: str = ""
    filesystem: FileSystem | None = None


def read_partitions(source: DiskSource) -> tuple[Partition, ...]:
    """Return the partitions of a disk in order of number, with what is in them.

    A disk without a partition table is one partition with the number 0.

    Raises:
        SourceError: the table is damaged, or says what cannot be.
    """
    found = _gpt(source)
    if found is None:
        whole = identify(source)
        if whole is not None:
            return (Partition(0, 0, source.size, filesystem=whole),)
        found = list(_mbr(source))
    return tuple(
        _checked(source, partition) for partition in sorted(found, key=lambda part: part.number)
    ) or (Partition(0, 0, source.size),)


def _checked(source: DiskSource, found: Partition) -> Partition:
    if not 0 <= found.start < found.start + found.length <= source.size:
        raise SourceError(
            f"the partition table is damaged: partition {found.number} is bytes {found.start} to "
            f"{found.start + found.length}, the disk has {source.size}"
        )
    inside = identify(source, found.start, found.length)
    return Partition(found.number, found.start, found.length, found.type, found.uuid, found.name, inside)


def _read(source: DiskSource, offset: int, length: int) -> bytes:
    """Read, with zeros for what lies outside of the disk."""
    buffer = bytearray(length)
    inside = max(0, min(length, source.size - offset))
    if inside and offset >= 0:
        source.read_into(offset, memoryview(buffer)[:inside])
    return bytes(buffer)


def _gpt(source: DiskSource) -> list[Partition] | None:
    for sector in _SECTORS:
        # The backup header is in the last sector; a grown disk has it no longer there.
        for position in (sector, source.size - sector):
            head = _read(source, position, sector)
            if head[:8] == b"EFI PART":
                entries = _gpt_entries(source, head, sector)
                if entries is not None:
                    return list(_gpt_partitions(entries, sector))
        if _read(source, sector, 8) == b"EFI PART":
            raise SourceError("the partition table (GPT) is damaged: neither copy has the right checksum")
    return None


def _gpt_entries(source: DiskSource, head: bytes, sector: int) -> list[bytes] | None:
    """Return the entries of the table, or None where a checksum is wrong."""
    _, _, size, checksum, _, _, _, _, _, _, table, count, width, table_checksum = _HEADER.unpack_from(head)
    if not _HEADER.size <= size <= sector or width < _ENTRY.size or count > _MOST_ENTRIES or width > sector:
        return None
    if zlib.crc32(head[:16] + bytes(4) + head[20:size]) != checksum:
        return None
    raw = _read(source, table * sector, count * width)
    if zlib.crc32(raw) != table_checksum:
        return None
    return [raw[index * width : (index + 1) * width] for index in range(count)]


def _gpt_partitions(entries: list[bytes], sector: int) -> Iterator[Partition]:
    for number, raw in enumerate(entries, 1):
        kind, unique, first, last, _, name = _ENTRY.unpack_from(raw)
        if any(kind):
            yield Partition(
                number,
                first * sector,
                (last - first + 1) * sector,
                str(uuid.UUID(bytes_le=kind)),
                str(uuid.UUID(bytes_le=unique)),
                name.decode("utf-16-le", "replace").split("\0")[0],
            )


def _mbr(source: DiskSource) -> Iterator[Partition]:
    boot = _read(source, 0, 512)
    if boot[510:512] != b"\x55\xaa":
        return
    signature = boot[440:444][::-1].hex()
    for number, (kind, start, length) in enumerate(_mbr_entries(boot), 1):
        if kind == _PROTECTIVE:
            raise SourceError("the partition table (GPT) is damaged: only its protective MBR is left")
        if kind in _EXTENDED:
            yield from _logical(source, start, signature)
        elif kind and length:
            yield Partition(number, start, length, f"{kind:02x}", f"{signature}-{number:02x}")


def _mbr_entries(sector: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and length (bytes) of the four entries."""
    for index in range(4):
        kind, start, length = struct.unpack_from("<4xB3xII", sector, 446 + 16 * index)
        yield kind, start * 512, length * 512


def _logical(source: DiskSource, base: int, signature: str) -> Iterator[Partition]:
    """Follow the chain of logical partitions, whose links count from the extended partition."""
    position = base
    for number in range(5, 5 + _MOST_LOGICAL):
        sector = _read(source, position, 512)
        if sector[510:512] != b"\x55\xaa":
            return
        (kind, start, length), (link_kind, link, _), *_ = _mbr_entries(sector)
        if kind and length:
            yield Partition(number, position + start, length, f"{kind:02x}", f"{signature}-{number:02x}")
        if link_kind not in _EXTENDED or not link:
            return
        position = base + link
    raise SourceError("the partition table (MBR) is damaged: its logical partitions do not end")
