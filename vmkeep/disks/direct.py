"""Writes that go past the page cache, from any number of threads.

What a restore writes is not read again soon. In the page cache it would take the memory of everything else on
the host, be written late (`fsync` then waits for gigabytes, with nothing left to do meanwhile), and cost more
processor time than decrypting it did.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from typing import TYPE_CHECKING, Final

from vmkeep.units import MiB

if TYPE_CHECKING:
    from pathlib import Path

_ALIGNMENT: Final = 4096
"""Bytes; no common device asks for more. See: open(2), O_DIRECT."""
_PIECE: Final = MiB


def supported(path: Path) -> bool:
    """Tell whether the file system of an existing file knows such writes."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
    except OSError:
        return False
    return True


class DirectWriter:
    """One file, opened a second time; where the file system does not know such writes, none are made."""

    def __init__(self, path: Path) -> None:
        """Open an existing file or block device for writing."""
        self._local = threading.local()
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._fd = -1

    def write(self, offset: int, data: memoryview) -> int:
        """Write the start of *data* at *offset*, as much of it as can be written this way.

        Returns:
            The number of bytes written; 0 if the caller has to write them as usual.

        Raises:
            OSError: they could not be written.
        """
        length = min(len(data), _PIECE) & -_ALIGNMENT
        if self._fd < 0 or offset % _ALIGNMENT or not length:
            return 0
        buffer = self._buffer()
        buffer[:length] = data[:length]
        try:
            return os.pwrite(self._fd, buffer[:length], offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0  # a device of larger blocks, or a file system that only opens files so

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # what was written is flushed by whoever opened it first
                os.close(self._fd)
            self._fd = -1

    def _buffer(self) -> memoryview:
        """Return the thread's own buffer, which begins at the start of a page."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = memoryview(mmap.mmap(-1, _PIECE))
        buffer: memoryview = self._local.buffer
        return buffer
