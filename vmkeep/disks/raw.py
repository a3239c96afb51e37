"""Raw images and block devices: the bytes of the disk are the bytes of the file."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from vmkeep.disks import locking
from vmkeep.disks.device import Extent
from vmkeep.disks.direct import DirectWriter
from vmkeep.errors import SourceChangedError, SourceError
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

# See: linux/falloc.h; linux/fs.h, BLKZEROOUT and BLKDISCARD.
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_BLKZEROOUT: Final = 0x127F
# Python has posix_fallocate only, which cannot make holes.
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class RawSource:
    """A raw image, locked against virtual machines that would write it."""

    def __init__(self, path: Path, *, what: str | None = None) -> None:
        """Open the image.

        Args:
            what: How errors call it, such as ``VM db1: disk root``.

        Raises:
            SourceError: it is missing or out of reach.
            SourceChangedError: a virtual machine runs on it.
        """
        self._what = f"{what} ({path})" if what else str(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hang us
        except OSError as error:
            raise SourceError(f"{self._what}: {error.strerror}") from error
        try:
            _require_disk(self._fd, self._what)
            locking.lock(self._fd, what=self._what)
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""
        return self._size

    def extents(self) -> Iterator[Extent]:
        """Yield what the file system has allocated; all of a block device."""
        end = 0
        while end < self._size:
            try:
                start = os.lseek(self._fd, end, os.SEEK_DATA)
                end = min(os.lseek(self._fd, start, os.SEEK_HOLE), self._size)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                if error.errno != errno.EINVAL:
                    raise SourceError(f"{self._what}: {error.strerror} while looking for holes") from error
                start, end = end, self._size  # a device or file system that knows no holes
            if start >= self._size:
                return
            yield Extent(start, end - start)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*; all of it, or raise."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise SourceError(f"{self._what}: {error.strerror} at byte {offset + done}") from error
            if count == 0:
                raise SourceChangedError(
                    f"{self._what} ends at byte {offset + done}; it was {self._size} bytes long"
                )
            done += count

    def close(self) -> None:
        """Let go of the file and its locks."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RawTarget:
    """A raw image that is written; parts that are never written stay holes."""

    def __init__(self, path: Path, *, size: int | None = None) -> None:
        """Open an existing image or block device, or make a new sparse file of *size* bytes.

        Raises:
            SourceError: it cannot be opened or made.
            SourceChangedError: a virtual machine runs on it.
        """
        self._path = path
        self._fresh = size is not None
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if self._fresh else 0)
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        try:
            locking.lock(self._fd, what=str(path), write=True)
            if size is not None:
                os.ftruncate(self._fd, size)
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
            self._is_device = stat.S_ISBLK(os.fstat(self._fd).st_mode)
            self._direct = DirectWriter(path)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""
        return self._size

    @property
    def fresh(self) -> bool:
        """Whether it was made by us, and so reads as zeros where nothing was written."""
        return self._fresh

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of *data* at *offset*."""
        rest = memoryview(data)
        if offset < 0 or offset + len(rest) > self._size:
            raise SourceError(
                f"{self._path}: bytes {offset} to {offset + len(rest)} are outside of its {self._size}"
            )
        while rest:
            try:
                count = self._direct.write(offset, rest) or os.pwrite(self._fd, rest, offset)
            except OSError as error:
                raise SourceError(f"{self._path}: {error.strerror} while writing at byte {offset}") from error
            rest, offset = rest[count:], offset + count

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros: a hole in a file, the device's own command on a device."""
        if length <= 0:
            return
        if self._is_device:
            try:
                fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("@QQ", offset, length))
            except OSError as error:
                raise SourceError(f"{self._path}: {error.strerror} while zeroing at byte {offset}") from error
            return
        if _fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
            return
        if ctypes.get_errno() != errno.EOPNOTSUPP:
            raise SourceError(
                f"{self._path}: {os.strerror(ctypes.get_errno())} while zeroing at byte {offset}"
            )
        for start in range(offset, offset + length, MiB):  # a file system without holes
            self.write(start, bytes(min(MiB, offset + length - start)))

    def flush(self) -> None:
        """Return when everything written is on stable storage."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise SourceError(f"{self._path}: {error.strerror} while flushing") from error

    def close(self) -> None:
        """Let go of the file and its locks."""
        if self._fd >= 0:
            self._direct.close()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require_disk(fd: int, what: str) -> None:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise SourceError(f"{what} is neither a file nor a block device")
