"""QEMU's image locks, taken by vmkeep itself.

QEMU marks what it does with an image by read locks on single bytes of the file, one byte for each
permission n it holds (100 + n), and one for each it denies to others (200 + n):

    permission          n    reader (vmkeep)      running VM
    consistent read     0    holds                holds
    write               1    denies               holds, denies
    write unchanged     2
    resize              3    denies               holds, denies

A conflict is found by asking for the opposite byte. So while vmkeep reads an image, no VM starts on
it, and an image that a VM runs on is never read as if it were powered off.

See: QEMU, block/file-posix.c, raw_apply_lock_bytes and raw_check_lock_bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from vmkeep.errors import SourceChangedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CONSISTENT_READ: Final = 0
_WRITE: Final = 1
_RESIZE: Final = 3
_HELD: Final = 100
_DENIED: Final = 200
# struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK: Final = struct.Struct("@hhqqi4x")
# File systems without such locks (some network and FUSE ones); QEMU itself goes on without, too.
# The fingerprint still notices what changes.
_WITHOUT_LOCKS: Final = {errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


def lock(fd: int, *, what: str, write: bool = False) -> None:
    """Mark the open file as being read (or written) by us, for as long as *fd* stays open.

    The locks belong to the open file: closing another descriptor of the same file keeps them.

    Raises:
        SourceChangedError: a virtual machine, or another tool that writes, has it open; names *what*.
    """
    holds = (_CONSISTENT_READ, _WRITE, _RESIZE) if write else (_CONSISTENT_READ,)
    denies = (_WRITE, _RESIZE)
    # Lock first and look afterwards: of two that start at once at least one sees the other.
    for byte in (*(_HELD + n for n in holds), *(_DENIED + n for n in denies)):
        _set(fd, byte)
    for byte in (*(_DENIED + n for n in holds), *(_HELD + n for n in denies)):
        if _is_locked(fd, byte):
            raise SourceChangedError(
                f"{what} is in use: a virtual machine runs on it, or another tool writes it; "
                "power the VM off, then try again"
            )


@contextlib.contextmanager
def locked(path: Path, *, what: str, write: bool = False) -> Iterator[int]:
    """Hold the locks of `lock` on a file; yields its descriptor."""
    fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        lock(fd, what=what, write=write)
        yield fd
    finally:
        os.close(fd)


def _set(fd: int, byte: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        # EAGAIN: an exclusive lock of some other program; the look afterwards names it.
        if error.errno not in _WITHOUT_LOCKS | {errno.EAGAIN, errno.EACCES}:
            raise


def _is_locked(fd: int, byte: int) -> bool:
    """Tell whether another open file has a lock on *byte*; our own do not count."""
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return False
        raise
    return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK
