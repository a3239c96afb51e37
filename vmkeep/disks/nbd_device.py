"""A disk behind an NBD server, for several threads at once: each borrows a connection of its own."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final

from vmkeep.disks.nbd import DIRTY_BITMAP, NbdConnection, data_extents
from vmkeep.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from vmkeep.disks.device import Extent

_TIMEOUT_S: Final = 120.0
_MOST_CONNECTIONS: Final = 8


class NbdDevice:
    """Source and target in one; whether writes work depends on the server."""

    def __init__(
        self, path: Path, export: str, *, fresh: bool = False, timeout_s: float = _TIMEOUT_S
    ) -> None:
        """Connect to the unix socket *path*.

        Args:
            fresh: The disk is known to read as zeros everywhere.

        Raises:
            TemporaryError: nobody answers in time.
            SourceError: the server does not have the export, or breaks the protocol.
        """
        self._path, self._export, self._timeout_s = path, export, timeout_s
        self._fresh = fresh
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._closed = False
        first = NbdConnection(path, export, timeout_s=timeout_s)
        self._size = first.size
        self._idle = [first]

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""
        return self._size

    @property
    def fresh(self) -> bool:
        """Whether it is known to read as zeros everywhere, so that holes need no writing."""
        return self._fresh

    def extents(self) -> Iterator[Extent]:
        """Yield what the server does not report as zeros, in order and merged."""
        with self._connection() as connection:
            yield from data_extents(connection, self._size)

    def dirty(self, bitmap: str) -> list[Extent]:
        """Return the ranges that are marked in a dirty bitmap of the server, in order and merged.

        Raises:
            SourceError: the server does not have it.
        """
        context = f"{DIRTY_BITMAP}{bitmap}"
        connection = NbdConnection(self._path, self._export, timeout_s=self._timeout_s, context=context)
        with contextlib.closing(connection):
            if not connection.knows_context:
                raise SourceError(f"NBD server {self._path}, export {self._export!r}: it has no {context}")
            return [*data_extents(connection, self._size)]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*; all of it, or raise."""
        with self._connection() as connection:
            connection.read_into(offset, buffer)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of *data* at *offset*."""
        with self._connection() as connection:
            connection.write(offset, memoryview(data))

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, without allocating it where the format can."""
        with self._connection() as connection:
            connection.zero(offset, length)

    def flush(self) -> None:
        """Return when everything written, through any connection, is on stable storage."""
        with self._connection() as connection:
            connection.flush()

    def close(self) -> None:
        """Let go of all connections; a second call does nothing."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[NbdConnection]:
        with self._slots:
            with self._lock:
                if self._closed:
                    raise SourceError(f"NBD export {self._export!r} is closed already")
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = NbdConnection(self._path, self._export, timeout_s=self._timeout_s)
            try:
                yield connection
            except BaseException:
                connection.broken = True  # whatever was under way may still be on the wire
                raise
            finally:
                self._give_back(connection)

    def _give_back(self, connection: NbdConnection) -> None:
        with self._lock:
            keep = not (connection.broken or self._closed)
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()
