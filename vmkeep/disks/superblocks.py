"""Which file system or container begins at some byte of a disk, by its superblock."""

from __future__ import annotations

import itertools
import struct
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.disks.device import DiskSource

_LOOK: Final = 68 * KiB
"""Btrfs has its superblock the farthest in: at 64 KiB."""

# ext4 feature bits. See: Linux kernel, Documentation/filesystems/ext4/super.rst.
_HAS_JOURNAL: Final = 0x4
_EXTENTS: Final = 0x40
_NEEDS_RECOVERY: Final = 0x4


@dataclass(frozen=True, slots=True)
class FileSystem:
    """What was found."""

    kind: str
    """`ext2`, `ext3`, `ext4`, `xfs`, `btrfs`, `vfat`, `ntfs`, `iso9660`, `swap`, `lvm2` or `luks`."""
    uuid: str = ""
    label: str = ""
    dirty: bool = False
    """An ext file system whose journal has to be replayed: it was not unmounted."""

    @property
    def is_ext(self) -> bool:
        """Whether it is one of the ext family."""
        return self.kind in {"ext2", "ext3", "ext4"}


def identify(source: DiskSource, start: int = 0, length: int | None = None) -> FileSystem | None:
    """Return what begins at *start* and is at most *length* bytes long; None if it is nothing we know."""
    size = min(_LOOK, source.size - start if length is None else length)
    head = bytearray(_LOOK)
    if size > 0:
        source.read_into(start, memoryview(head)[:size])
    data = bytes(head)
    return next((found for recognize in _RECOGNIZERS if (found := recognize(data))), None)


def _ext(head: bytes) -> FileSystem | None:
    block = head[1024:2048]
    if block[56:58] != b"\x53\xef":
        return None
    compatible, incompatible = struct.unpack_from("<II", block, 0x5C)
    kind = "ext4" if incompatible & _EXTENTS else "ext3" if compatible & _HAS_JOURNAL else "ext2"
    return FileSystem(
        kind, _uuid(block[104:120]), _text(block[120:136]), bool(incompatible & _NEEDS_RECOVERY)
    )


def _xfs(head: bytes) -> FileSystem | None:
    return FileSystem("xfs", _uuid(head[32:48]), _text(head[108:120])) if head[:4] == b"XFSB" else None


def _btrfs(head: bytes) -> FileSystem | None:
    block = head[64 * KiB :]
    if block[0x40:0x48] != b"_BHRfS_M":
        return None
    return FileSystem("btrfs", _uuid(block[0x20:0x30]), _text(block[0x12B:0x22B]))


def _swap(head: bytes) -> FileSystem | None:
    if head[4086:4096] not in {b"SWAPSPACE2", b"SWAP-SPACE"}:
        return None
    return FileSystem("swap", _uuid(head[1036:1052]), _text(head[1052:1068]))


def _luks(head: bytes) -> FileSystem | None:
    return FileSystem("luks", _text(head[168:208])) if head[:6] == b"LUKS\xba\xbe" else None


def _lvm(head: bytes) -> FileSystem | None:
    for sector in range(4):
        label = head[sector * 512 : sector * 512 + 512]
        if label[:8] == b"LABELONE" and label[24:32] == b"LVM2 001":
            raw = _text(label[32:64])
            # lvm writes its own groups: 6-4-4-4-4-4-6 characters.
            cuts = (0, 6, 10, 14, 18, 22, 26, 32)
            return FileSystem("lvm2", "-".join(raw[a:b] for a, b in itertools.pairwise(cuts)))
    return None


def _iso(head: bytes) -> FileSystem | None:
    return FileSystem("iso9660", "", _text(head[32808:32840])) if head[32769:32774] == b"CD001" else None


def _ntfs(head: bytes) -> FileSystem | None:
    return FileSystem("ntfs", head[72:80][::-1].hex().upper()) if head[3:11] == b"NTFS    " else None


def _vfat(head: bytes) -> FileSystem | None:
    # See: Microsoft, FAT32 File System Specification, "Boot Sector and BPB".
    if head[510:512] != b"\x55\xaa":
        return None
    for kind, serial, label in ((slice(82, 87), 67, 71), (slice(54, 58), 39, 43)):
        if head[kind] in {b"FAT32", b"FAT1"}:
            high, low = head[serial + 2 : serial + 4][::-1].hex(), head[serial : serial + 2][::-1].hex()
            return FileSystem("vfat", f"{high}-{low}".upper(), _text(head[label : label + 11]))
    return None


def _uuid(raw: bytes) -> str:
    return str(uuid.UUID(bytes=raw))


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace").strip()


_RECOGNIZERS: Final[tuple[Callable[[bytes], FileSystem | None], ...]] = (
    _luks, _lvm, _ext, _xfs, _btrfs, _swap, _iso, _ntfs, _vfat,
)  # fmt: skip
