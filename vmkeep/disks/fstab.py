"""What a guest mounts where: its /etc/fstab, matched with the partitions of its disks. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmkeep.disks.partitions import Partition

_PSEUDO: Final = {
    "swap", "tmpfs", "proc", "sysfs", "devpts", "devtmpfs", "cgroup2", "debugfs", "tracefs", "efivarfs",
    "nfs", "nfs4", "cifs", "9p", "virtiofs", "overlay", "fuse", "ignore", "none", "auto",
}  # fmt: skip
# /dev/sda1, /dev/vdb, /dev/xvda2, /dev/hda1, and /dev/nvme0n1p2.
_LETTER: Final = re.compile(r"/dev/(?:s|v|xv|h)d([a-z])(\d*)")
_NVME: Final = re.compile(r"/dev/nvme(\d+)n1(?:p(\d+))?")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line."""

    source: str
    """`UUID=…`, `LABEL=…`, `PARTUUID=…`, `PARTLABEL=…`, or a device."""
    point: tuple[bytes, ...]
    """The names of the mount point's path; empty for the root."""
    type: str


def parse(text: bytes) -> Iterator[Mount]:
    """Yield the lines that mount a file system of a disk at boot, the shorter paths first."""
    found = []
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        fields = [_unescape(field) for field in line.split("#")[0].split()]
        if len(fields) < 3:
            continue
        source, point, kind = fields[:3]
        options = fields[3].split(",") if len(fields) > 3 else []
        is_disk = source.startswith(("/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="))
        if not is_disk or "noauto" in options or not point.startswith("/") or kind in _PSEUDO - {"auto"}:
            continue
        names = tuple(name.encode("utf-8", "surrogateescape") for name in point.split("/") if name)
        if b".." not in names:
            found.append(Mount(source, names, kind))
    yield from sorted(found, key=lambda mount: len(mount.point))


def find(source: str, disks: Sequence[Sequence[Partition]]) -> tuple[int, Partition] | None:
    """Return the index of the disk and the partition that *source* names, if it is on one of *disks*."""
    key, _, value = source.partition("=")
    value = value.strip("\"'")
    for index, partitions in enumerate(disks):
        for partition in partitions:
            inside = partition.filesystem
            names = {
                "UUID": inside.uuid if inside else "",
                "LABEL": inside.label if inside else "",
                "PARTUUID": partition.uuid,
                "PARTLABEL": partition.name,
            }
            known = names.get(key, "")
            same = known.lower() == value.lower() if key.endswith("UUID") else known == value
            if (known and same) or (index, partition.number) == _device(source):
                return index, partition
    return None


def _device(source: str) -> tuple[int, int] | None:
    """Return disk index and partition number of a device name, as the guest counts its disks."""
    if match := _LETTER.fullmatch(source):
        return ord(match[1]) - ord("a"), int(match[2] or 0)
    if match := _NVME.fullmatch(source):
        return int(match[1]), int(match[2] or 0)
    return None


def _unescape(field: str) -> str:
    """Undo fstab's octal escapes: a blank is a backslash and 040."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)
