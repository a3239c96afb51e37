"""Serves disks read-only over NBD, so that QEMU, `qemu-img`, `nbdcopy` and any NBD client can read them.

    listener ── connection ── negotiation ── requests ──┬── reader ──┐
                                                        ├── reader ──┼── replies, in any order
                                                        └── reader ──┘

What a client sends is not trusted: a connection that breaks the protocol ends, and no other notices.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Protocol

from vmkeep.disks import nbd_protocol as nbd
from vmkeep.disks.nbd_negotiation import Negotiated, negotiate, receive
from vmkeep.errors import InputError, VmkeepError
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vmkeep.disks.device import Extent

_READERS: Final = 8
"""Requests of one connection that are read at the same time: a far store lets each wait."""
_AHEAD: Final = 64
"""Requests of one connection that may wait; then we stop listening to it."""
_MOST_STATUS: Final = 4096
"""Ranges in one answer about allocation; a client asks again from where it ends."""
_PIECE: Final = 1 * MiB
"""Long reads are answered in pieces, so that memory is bounded by the number of readers."""

_WRITING: Final = frozenset({nbd.Command.WRITE, nbd.Command.TRIM, nbd.Command.WRITE_ZEROES})
_READING: Final = frozenset(
    {nbd.Command.READ, nbd.Command.CACHE, nbd.Command.BLOCK_STATUS, nbd.Command.FLUSH}
)

_log = logging.getLogger(__name__)


class Readable(Protocol):
    """A disk that can be served. Safe to use from several threads."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*."""

    def extents_within(self, start: int, length: int) -> Iterator[Extent]:
        """Yield the parts of a range that may hold data, in order, merged."""


class NbdServer:
    """A server that listens. Made by `serving`.

    Args:
        exports: the disks by name; the name "" is what a client gets that names none.
    """

    def __init__(self, listener: socket.socket, exports: Mapping[str, Readable]) -> None:
        self._listener = listener
        self._exports = exports
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._over = False
        self._thread = threading.Thread(target=self._accept, name="nbd", daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        with self._lock:
            return len(self._connections)

    def close(self) -> None:
        """Listen no more, end all connections, and return when their threads have ended."""
        with self._lock:
            self._over = True
            threads = list(self._connections.values())
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._thread, *threads):
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            thread = threading.Thread(target=self._serve, args=(connection,), name="nbd-client", daemon=True)
            with self._lock:
                if self._over:
                    connection.close()
                    return
                self._connections[connection] = thread
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            agreed = negotiate(connection, self._exports)
            if agreed is not None:
                with _Session(connection, agreed, self._exports[agreed.export]) as session:
                    session.run()
        except (OSError, EOFError):
            pass  # it went away
        except ValueError as error:
            _log.info("an NBD client broke the protocol: %s", error)
        finally:
            connection.close()
            with self._lock:
                self._connections.pop(connection, None)


@contextlib.contextmanager
def serving(exports: Mapping[str, Readable], address: Path | tuple[str, int]) -> Iterator[NbdServer]:
    """Serve *exports* for the length of a `with` block.

    Args:
        address: a unix socket, for this user only, which is removed at the end; or host and port.

    Raises:
        InputError: the address cannot be listened on.
    """
    if isinstance(address, tuple):
        listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        where: str | tuple[str, int] = address
    else:
        listener = socket.socket(socket.AF_UNIX)
        where = str(address)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(where)
        finally:
            os.umask(before)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise InputError(f"cannot serve NBD at {address}: {error.strerror or error}") from error
    server = NbdServer(listener, exports)
    try:
        yield server
    finally:
        server.close()
        if not isinstance(address, tuple):
            address.unlink(missing_ok=True)


class _Session:
    """What a connection does once it has entered an export."""

    def __init__(self, connection: socket.socket, agreed: Negotiated, disk: Readable) -> None:
        self._connection, self._agreed, self._disk = connection, agreed, disk
        self._sending = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_AHEAD)
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="nbd-read")

    def __enter__(self) -> _Session:  # noqa: PYI034  (private, and final)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self) -> None:
        """Take requests until the client leaves."""
        while True:
            magic, flags, command, cookie, offset, length = nbd.REQUEST.unpack(
                receive(self._connection, nbd.REQUEST.size)
            )
            if magic != nbd.REQUEST_MAGIC:
                raise ValueError(f"a request begins with {magic:#x}")
            if command == nbd.Command.DISC:
                return
            if command == nbd.Command.WRITE:
                if length > nbd.MOST_PAYLOAD:
                    raise ValueError(f"a write of {length} bytes")
                receive(self._connection, length)  # what it would write is on its way already
            self._waiting.acquire()
            self._pool.submit(self._answer, command, flags, cookie, offset, length)

    def _answer(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        try:
            error = self._refused(command, offset, length)
            if error is not None:
                self._fail(cookie, *error)
            elif command == nbd.Command.READ:
                self._read(flags, cookie, offset, length)
            elif command == nbd.Command.BLOCK_STATUS:
                self._status(flags, cookie, offset, length)
            else:
                if command == nbd.Command.CACHE and length:
                    self._disk.read_into(offset, memoryview(bytearray(length)))
                self._done(cookie)
        except OSError:
            with contextlib.suppress(OSError):  # the one who takes requests notices, too
                self._connection.shutdown(socket.SHUT_RDWR)
        except VmkeepError as error:
            _log.error("an NBD client could not be answered: %s", error)
            with contextlib.suppress(OSError):
                self._fail(cookie, nbd.Errno.EIO, str(error))
        finally:
            self._waiting.release()

    def _refused(self, command: int, offset: int, length: int) -> tuple[nbd.Errno, str] | None:
        """Return why a request cannot be carried out, if it cannot."""
        status = command == nbd.Command.BLOCK_STATUS
        if command in _WRITING:
            return nbd.Errno.EPERM, "the export is read-only"
        if command not in _READING or (status and not self._agreed.allocation):
            return nbd.Errno.EINVAL, f"command {command} is not known, or was not agreed on"
        if command == nbd.Command.FLUSH:
            return None
        if offset + length > self._disk.size or (status and length == 0):
            return nbd.Errno.EINVAL, f"{length} bytes at {offset} are not inside of {self._disk.size}"
        if not status and length > nbd.MOST_PAYLOAD:
            return nbd.Errno.EOVERFLOW, f"{length} bytes are more than {nbd.MOST_PAYLOAD}"
        return None

    def _read(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if not self._agreed.structured:
            data = bytearray(length)
            self._disk.read_into(offset, memoryview(data))
            self._send(nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, 0, cookie), data)
            return
        if flags & nbd.CommandFlag.DF:
            data = bytearray(length)
            self._disk.read_into(offset, memoryview(data))
            self._chunk(nbd.DONE, nbd.Chunk.OFFSET_DATA, cookie, struct.pack(">Q", offset), data)
            return
        for start, size, holds in _parts(self._disk, offset, length):
            if not holds:
                self._chunk(0, nbd.Chunk.OFFSET_HOLE, cookie, struct.pack(">QI", start, size))
                continue
            for at in range(start, start + size, _PIECE):
                piece = bytearray(min(_PIECE, start + size - at))
                self._disk.read_into(at, memoryview(piece))
                self._chunk(0, nbd.Chunk.OFFSET_DATA, cookie, struct.pack(">Q", at), piece)
        self._chunk(nbd.DONE, nbd.Chunk.NONE, cookie)

    def _status(self, flags: int, cookie: int, offset: int, length: int) -> None:
        most = 1 if flags & nbd.CommandFlag.REQ_ONE else _MOST_STATUS
        found = bytearray(struct.pack(">I", self._agreed.context))
        for _, size, holds in _parts(self._disk, offset, length, most=most):
            found += struct.pack(">II", size, 0 if holds else nbd.STATE_HOLE | nbd.STATE_ZERO)
        self._chunk(nbd.DONE, nbd.Chunk.BLOCK_STATUS, cookie, found)

    def _done(self, cookie: int) -> None:
        if self._agreed.structured:
            self._chunk(nbd.DONE, nbd.Chunk.NONE, cookie)
        else:
            self._send(nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, 0, cookie))

    def _fail(self, cookie: int, error: nbd.Errno, message: str) -> None:
        if self._agreed.structured:
            text = message.encode()[:4096]
            self._chunk(nbd.DONE, nbd.Chunk.ERROR, cookie, struct.pack(">IH", error, len(text)), text)
        else:
            self._send(nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, error, cookie))

    def _chunk(self, flags: int, kind: nbd.Chunk, cookie: int, *payload: bytes | bytearray) -> None:
        length = sum(map(len, payload))
        self._send(nbd.CHUNK.pack(nbd.CHUNK_MAGIC, flags, kind, cookie, length), *payload)

    def _send(self, *parts: bytes | bytearray) -> None:
        with self._sending:
            for part in parts:
                self._connection.sendall(part)


def _parts(
    disk: Readable, offset: int, length: int, *, most: int | None = None
) -> Iterator[tuple[int, int, bool]]:
    """Yield start, length, and whether there may be data, for all parts of a range, at least one.

    Args:
        most: stop after so many.
    """
    at, end, count = offset, offset + length, 0
    for extent in disk.extents_within(offset, length):
        if extent.start > at:
            yield at, extent.start - at, False
            count += 1
        if count == most:
            return
        yield extent.start, extent.length, True
        at, count = extent.end, count + 1
        if count == most:
            return
    if at < end:
        yield at, end - at, False
