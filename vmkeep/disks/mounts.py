"""One file system inside of a disk, mounted as a folder of this host for a while.

The ext family is served by fuse2fs in user space: a guest's file system is untrusted input, and the
host's kernel does not parse it. Others go through the kernel, if that was allowed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING, Final

from vmkeep.disks import scratch, tools
from vmkeep.errors import DirtyError, SourceError, TemporaryError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmkeep.disks.exports import Volume
    from vmkeep.disks.partitions import Partition

_KERNEL: Final = {"xfs", "btrfs", "vfat", "iso9660", "ntfs"}
# Nobody else changes these files: the kernel may keep names and attributes, and write large blocks.
# The inode numbers must be the file system's own: hard links are known by them.
_FUSE2FS: Final = "no_default_opts,use_ino,kernel_cache,big_writes,attr_timeout=3600,entry_timeout=3600"
_START_S: Final = 60.0
_STOP_S: Final = 600.0
_CHECK_S: Final = 6 * 3600.0
_POLL_S: Final = 0.005


def mountable(partition: Partition, *, kernel_mounts: bool) -> bool:
    """Tell whether `mounted` can serve what is in the partition."""
    inside = partition.filesystem
    return inside is not None and (
        inside.is_ext or (inside.kind in _KERNEL and _kernel_allowed(kernel_mounts))
    )


def refusal(partition: Partition) -> str:
    """Return why what is in the partition cannot be opened, and both ways out, in one line."""
    kind = partition.filesystem.kind if partition.filesystem else "unknown"
    whole = "back its disk up whole (components os or filesystems with disk)"
    if kind in _KERNEL:
        return (
            f"files of {kind} file systems are read by the host's kernel only: set kernel_mounts: true on "
            f"the hypervisor (vmkeep rescue: --kernel-mounts) and run as root, or {whole}"
        )
    return f"files inside of {kind} are not supported: {whole}"


@contextlib.contextmanager
def mounted(volume: Volume, point: Path, *, kernel_mounts: bool) -> Iterator[None]:
    """Mount a volume at the new folder *point*, writable.

    When the block ends without an error, everything written is in the file.

    Raises:
        UnsupportedError: there is no way here to mount it.
        SourceError: it is damaged.
    """
    if not mountable(volume.partition, kernel_mounts=kernel_mounts):
        raise UnsupportedError(refusal(volume.partition))
    point.mkdir()
    inside = volume.partition.filesystem
    if inside is not None and inside.is_ext:
        if inside.dirty:
            replay_journal(volume)
        with _fuse2fs(volume.path, point):
            yield
    else:
        with _kernel(volume, point):
            yield


def replay_journal(volume: Volume) -> None:
    """Bring an ext file system that was not unmounted into order, as a mount would."""
    tools.run("e2fsck", "-p", "-E", "journal_only", str(volume.path), timeout_s=_CHECK_S, accept=(0, 1))


def check_ext(volume: Volume, *, what: str) -> None:
    """Check an ext file system in full, without changing it.

    Raises:
        DirtyError: it has errors; carries what e2fsck said.
    """
    try:
        tools.run("e2fsck", "-f", "-n", str(volume.path), timeout_s=_CHECK_S)
    except TemporaryError:
        raise
    except SourceError as error:
        raise DirtyError(f"{what}: the file system has errors: {error}") from error


def _kernel_allowed(kernel_mounts: bool) -> bool:  # noqa: FBT001  (a switch of the fleet file)
    return kernel_mounts and os.geteuid() == 0


@contextlib.contextmanager
def _fuse2fs(disk: Path, point: Path) -> Iterator[None]:
    options = _FUSE2FS + ("" if os.geteuid() == 0 else ",fakeroot")
    command = [tools.find("fuse2fs"), "-f", str(disk), str(point), "-o", options]
    log = point.with_name(f"{point.name}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,  # Ctrl-C is for us: a step that is under way still needs it
        )  # fmt: skip
    point.with_name(f"{point.name}.pid").write_text(str(process.pid))
    try:
        _wait_for_mount(process, point, log)
        yield
        _unmount(point)
        if process.wait(_STOP_S) != 0:
            raise SourceError(f"fuse2fs failed: {tools.last_words(log.read_text(errors='replace'))}")
    finally:
        if process.poll() is None:
            with contextlib.suppress(SourceError, TemporaryError):
                scratch.unmount(point, lazy=True)
            scratch.end(process)


@contextlib.contextmanager
def _kernel(volume: Volume, point: Path) -> Iterator[None]:
    inside = volume.partition.filesystem
    assert inside is not None  # noqa: S101  (mountable)
    # nouuid: xfs refuses a second copy of a file system that is mounted already.
    options = "loop,nosuid,nodev,noexec" + (",nouuid" if inside.kind == "xfs" else "")
    tools.run("mount", "-t", inside.kind, "-o", options, str(volume.path), str(point), timeout_s=_START_S)
    try:
        yield
        _unmount(point)
    finally:
        if os.path.ismount(point):
            scratch.unmount(point, lazy=True)


def _wait_for_mount(process: subprocess.Popen[bytes], point: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not os.path.ismount(point):
        if process.poll() is not None:
            raise SourceError(f"fuse2fs cannot mount it: {tools.last_words(log.read_text(errors='replace'))}")
        if time.monotonic() > deadline:
            raise TemporaryError(f"fuse2fs did not mount within {_START_S:.0f} s")
        time.sleep(_POLL_S)


def _unmount(point: Path) -> None:
    """Unmount for certain; what another thread still closes gets some time."""
    for attempt in range(100):
        try:
            scratch.unmount(point)
        except SourceError:
            if attempt == 99:
                raise
            time.sleep(0.05)
        else:
            return
