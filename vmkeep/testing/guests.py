"""Real guests for tests and demos: disk images with partitions and file systems, made without root."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import stat
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmkeep.disks import tools
from vmkeep.disks.raw import RawSource, RawTarget
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Sequence

_LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
"""The GPT type of a Linux file system."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition with an ext4 file system."""

    tree: Path
    """The files it begins with."""
    size: int = 64 * MiB
    label: str = ""
    uuid: str = ""
    kind: str = "ext4"


def build_disk(
    path: Path,
    volumes: Sequence[Volume],
    *,
    format: str = "raw",  # noqa: A002  (the word of the fleet file)
    size: int | None = None,
) -> None:
    """Make an image with a GPT and one partition for each volume.

    Args:
        size: Of the disk; by default as large as needed.
    """
    total = size or (sum(volume.size for volume in volumes) + 2 * MiB)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        raw = Path(folder) / "disk.raw"
        with RawTarget(raw, size=total) as disk:
            _partition(raw, [volume.size for volume in volumes])
            start = MiB
            for number, volume in enumerate(volumes):
                part = Path(folder) / f"part-{number}"
                build_filesystem(part, volume)
                _copy(part, disk, start)
                start += volume.size
        if format == "raw":
            raw.replace(path)
        else:
            tools.run("qemu-img", "convert", "-f", "raw", "-O", format, str(raw), str(path), timeout_s=600)


def build_filesystem(path: Path, volume: Volume) -> None:
    """Make a file with an ext file system that holds a copy of a tree."""
    with path.open("xb") as file:
        file.truncate(volume.size)
    options = ["-L", volume.label] if volume.label else []
    options += ["-U", volume.uuid] if volume.uuid else []
    # Images of tests shall not differ with the machine: no lazily written tables.
    tools.run(
        "mke2fs", "-q", "-F", "-t", volume.kind, "-b", "4096", "-E", "lazy_itable_init=0", *options,
        "-d", str(volume.tree), str(path), timeout_s=600,
    )  # fmt: skip


def fill_with_oddities(folder: Path) -> None:
    """Put into *folder* one of each thing that a backup of files may lose. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "plain.txt"
    plain.write_text("just text\n")
    os.link(plain, folder / "hard-link")
    os.setxattr(plain, "user.note", b"any \0 bytes \xff")
    os.setxattr(plain, "trusted.secret", b"root only")
    _acl(plain, user=33)
    tool = folder / "tool"
    tool.write_bytes(b"\x7fELF" + bytes(100) + b"tool")
    os.chown(tool, 0, 12)
    tool.chmod(0o4750)
    # See: linux/capability.h, vfs_cap_data, revision 2: CAP_NET_RAW, permitted and effective.
    os.setxattr(tool, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))
    with (folder / "sparse").open("wb") as file:
        file.seek(20 * MiB)
        file.write(b"the end")
        file.truncate(30 * MiB)
    (folder / "zeros").write_bytes(bytes(3 * MiB) + b"x")
    (folder / "empty").touch(mode=0o600)
    (folder / "empty-folder").mkdir(mode=0o1777)
    (folder / "empty-folder").chmod(0o1777)
    shared = folder / "shared"
    shared.mkdir()
    os.chown(shared, 1000, 1001)
    shared.chmod(0o2775)
    _acl(shared, user=34, name="system.posix_acl_default")
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "disk", stat.S_IFBLK | 0o660, os.makedev(253, 1))
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(folder):
        listener.bind("socket")  # a socket's path may be only 107 bytes long
    (folder / "link").symlink_to("plain.txt")
    (folder / "absolute-link").symlink_to("/etc/passwd")
    (folder / "long-link").symlink_to("x" * 900)
    (folder / "broken-link").symlink_to("nowhere")
    os.lchown(folder / "link", 7, 8)
    for name in (b"not-utf8-\xff\xfe", b"new\nline", "ümläut-日本".encode(), b" -rf *", b'"quoted\\"'):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(name)
    deep = folder
    for level in range(20):
        deep = deep / f"level-{level}"
        deep.mkdir()
    (deep / "bottom").write_bytes(os.urandom(5000))
    (folder / "random").write_bytes(os.urandom(2 * MiB + 17))
    for path in (plain, folder / "empty-folder", shared):
        os.utime(path, ns=(0, 1_234_567_890_123_456_789))


def describe(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """Return all that is known of each entry below *folder*, by path: two equal trees compare equal."""
    found: dict[bytes, tuple[object, ...]] = {}
    groups: dict[tuple[int, int], bytes] = {}
    base = os.fsencode(folder)
    for parent, folders, names in os.walk(base):
        folders.sort()
        for name in sorted(folders + names):
            path = parent + b"/" + name
            status = os.lstat(path)
            first = groups.setdefault((status.st_dev, status.st_ino), path[len(base) :])
            found[path[len(base) :]] = (
                stat.filemode(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0,
                first if not stat.S_ISDIR(status.st_mode) else b"",
                {name: os.getxattr(path, name, follow_symlinks=False) for name in _xattr_names(path)},
                _content(path, status.st_mode),
            )
    return found


def write_into(disk: Path, offset: int, data: bytes) -> None:
    """Write into a raw image, as a guest would; makes a difference for every backup."""
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _xattr_names(path: bytes) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def _content(path: bytes, mode: int) -> object:
    if stat.S_ISLNK(mode):
        return os.readlink(path)  # noqa: PTH115  (a name of any bytes)
    if not stat.S_ISREG(mode):
        return None
    with open(path, "rb") as file:  # noqa: PTH123  (a name of any bytes)
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _acl(path: Path, *, user: int, name: str = "system.posix_acl_access") -> None:
    # See: linux/posix_acl_xattr.h: version 2, then tag, permissions and id of each entry.
    entries = [(1, 6, -1), (2, 4, user), (4, 4, -1), (0x10, 4, -1), (0x20, 4, -1)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, name, value)


def _partition(disk: Path, sizes: Sequence[int]) -> None:
    lines = ["label: gpt", "first-lba: 2048"]
    lines += [f"size={size // 512}, type={_LINUX}" for size in sizes]
    subprocess.run(
        [tools.find("sfdisk"), "--quiet", "--no-reread", "--no-tell-kernel", str(disk)],
        input="\n".join(lines).encode() + b"\n",
        check=True,
        capture_output=True,
        timeout=60,
    )


def _copy(part: Path, disk: RawTarget, start: int) -> None:
    with RawSource(part) as source:
        for extent in source.extents():
            for offset in range(extent.start, extent.end, MiB):
                buffer = bytearray(min(MiB, extent.end - offset))
                source.read_into(offset, memoryview(buffer))
                disk.write(start + offset, buffer)
