"""A limit to how fast bytes go out, shared by all that send."""

from __future__ import annotations

import functools
import threading
import time
from typing import TYPE_CHECKING, Final

from vmkeep.units import KiB

if TYPE_CHECKING:
    from typing import BinaryIO

_PIECE: Final = 64 * KiB
"""What is sent at once: small, so that a line is not filled for seconds and then idle for seconds."""


class Pace:
    """Lets so many bytes a second through. Safe to use from several threads.

    Each piece gets the next free stretch of time, as long as it takes at this rate; whoever sends it waits
    until that begins. Time in which nobody sent is not made up for.

    Args:
        rate: bytes a second.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free = 0.0
        """When the next piece may go, by the monotonic clock."""
        self._changed = threading.Lock()

    def take(self, size: int) -> None:
        """Return when *size* bytes may be sent."""
        with self._changed:
            begin = max(self._free, time.monotonic())
            self._free = begin + size / self._rate
        if (pause := begin - time.monotonic()) > 0:
            time.sleep(pause)


@functools.cache
def shared_pace(rate: int) -> Pace:
    """Return the one pace of this process for *rate* bytes a second, whichever stores it sends to."""
    return Pace(rate)


class PacedFile:
    """A file that is read no faster than a pace lets it, while it is sent; only then.

    The two `signal_` methods are what the handlers of `s3transfer.utils` call, around the work of botocore
    that reads a body to sign it, and has to read it at full speed.
    """

    def __init__(self, file: BinaryIO, pace: Pace, *, sending: bool) -> None:
        self._file = file
        self._pace = pace
        self._sending = sending

    def read(self, size: int = -1) -> bytes:
        """Return up to *size* bytes, or all that are left."""
        if not self._sending:
            return self._file.read(size)
        parts = []
        while size and (part := self._file.read(_PIECE if size < 0 else min(size, _PIECE))):
            self._pace.take(len(part))
            parts.append(part)
            size -= len(part) if size > 0 else 0
        return b"".join(parts)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of any file."""
        return self._file.tell()

    def signal_transferring(self) -> None:
        """Begin to keep the pace."""
        self._sending = True

    def signal_not_transferring(self) -> None:
        """Read at full speed."""
        self._sending = False
