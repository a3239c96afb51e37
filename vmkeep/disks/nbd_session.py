"""What an NBD client and our server say to each other once they agreed on a disk: requests and replies.

Several threads serve one connection. One of them waits for the next request; when it has it, another one
takes its place, and it answers:

    thread 1    wait ... request 7 | read the disk ......... | reply 7 | wait
    thread 2                       | wait ... request 8 | read .. | reply 8 | wait

So requests overlap, replies come in any order, and no request changes hands. Long reads are answered in
pieces; no more than one piece for each thread is in memory.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.disks import nbd_protocol as nbd
from vmkeep.errors import VmkeepError
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.disks.nbd_negotiation import Negotiated
    from vmkeep.disks.nbd_server import Readable

THREADS: Final = 8
"""Requests of one connection that are answered at the same time: a far store lets each wait."""
PIECE: Final = 512 * KiB
"""The most of a disk that is in memory for one of them."""
_SEND_S: Final = 300
"""How long a client may take no more of a reply before it is dropped."""
_BUFFER: Final = 64 * KiB
_MOST_STATUS: Final = 4096
"""Ranges in one answer about allocation; a client asks again from where it ends."""
_WORTH_A_LOOK: Final = 64 * KiB
"""Shorter reads are not looked through for holes."""

_WRITING: Final = frozenset({nbd.Command.WRITE, nbd.Command.TRIM, nbd.Command.WRITE_ZEROES})
_READING: Final = frozenset(
    {nbd.Command.READ, nbd.Command.CACHE, nbd.Command.BLOCK_STATUS, nbd.Command.FLUSH}
)
_FLAGS: Final[dict[int, int]] = {
    nbd.Command.READ: int(nbd.CommandFlag.DF),
    nbd.Command.BLOCK_STATUS: int(nbd.CommandFlag.REQ_ONE),
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Request:
    command: int
    flags: int
    cookie: int
    offset: int
    length: int


class Session:
    """One connection, from its first request to its end."""

    def __init__(self, connection: socket.socket, agreed: Negotiated, disk: Readable) -> None:
        self._connection, self._agreed, self._disk = connection, agreed, disk
        self._received = connection.makefile("rb", buffering=_BUFFER)
        self._turn = threading.Lock()
        """Held by the thread that waits for the next request."""
        self._sending = threading.Lock()
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        """Answer until the client leaves, or breaks the protocol."""
        limit = struct.pack("ll", _SEND_S, 0)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            self._work()
        finally:
            for thread in self._threads:
                thread.join()
            self._received.close()

    def _work(self) -> None:
        buffer = memoryview(bytearray(PIECE))
        try:
            while True:
                with self._turn:
                    request = self._next()
                    if len(self._threads) < THREADS - 1:
                        self._add_thread()
                self._answer(request, buffer)
        except (OSError, EOFError):
            pass  # it went away
        except ValueError as error:
            _log.info("an NBD client broke the protocol: %s", error)
        finally:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # which the other threads notice

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="nbd-read", daemon=True)
        with contextlib.suppress(RuntimeError):  # there can be no more now: those that there are go on
            thread.start()
            self._threads.append(thread)

    def _next(self) -> _Request:
        magic, flags, command, cookie, offset, length = nbd.REQUEST.unpack(self._receive(nbd.REQUEST.size))
        if magic != nbd.REQUEST_MAGIC:
            raise ValueError(f"a request begins with {magic:#x}")
        if command == nbd.Command.DISC:
            raise EOFError
        if command == nbd.Command.WRITE:
            self._skip(length)  # what it would write is on its way already
        return _Request(command, flags, cookie, offset, length)

    def _skip(self, length: int) -> None:
        if length > nbd.MOST_PAYLOAD:
            raise ValueError(f"a write of {length} bytes")
        while length > 0:
            length -= len(self._receive(min(length, _BUFFER)))

    def _receive(self, length: int) -> bytes:
        data: bytes = self._received.read(length)
        if len(data) < length:
            raise EOFError
        return data

    # --- answers -----------------------------------------------------------------------------

    def _answer(self, request: _Request, buffer: memoryview) -> None:
        refusal = self._refusal(request)
        if refusal is not None:
            self._fail(request, *refusal)
            return
        try:
            match request.command:
                case nbd.Command.READ if not self._agreed.structured:
                    self._read_at_once(request, buffer, nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, 0, request.cookie))
                case nbd.Command.READ if request.flags & nbd.CommandFlag.DF:
                    head = self._head(request, nbd.DONE, nbd.Chunk.OFFSET_DATA, 8 + request.length)
                    self._read_at_once(request, buffer, head + struct.pack(">Q", request.offset))
                case nbd.Command.READ:
                    self._read(request, buffer)
                case nbd.Command.BLOCK_STATUS:
                    self._status(request)
                case nbd.Command.CACHE:
                    for at, part in _pieces(request.offset, request.length, buffer):
                        self._disk.read_into(at, part)
                    self._done(request)
                case _:
                    self._done(request)
        except VmkeepError as error:
            _log.error("an NBD client could not be answered: %s", error)
            self._fail(request, nbd.Errno.EIO, str(error))

    def _refusal(self, request: _Request) -> tuple[nbd.Errno, str] | None:
        """Return why a request cannot be carried out, if it cannot."""
        command = request.command
        if command in _WRITING:
            return nbd.Errno.EPERM, "the export is read-only"
        if command not in _READING or (command == nbd.Command.BLOCK_STATUS and not self._agreed.allocation):
            return nbd.Errno.EINVAL, f"command {command} is not known, or was not agreed on"
        if request.flags & ~_FLAGS.get(command, 0):
            return nbd.Errno.EINVAL, f"flags {request.flags:#x} were not agreed on for command {command}"
        return self._misplaced(request)

    def _misplaced(self, request: _Request) -> tuple[nbd.Errno, str] | None:
        """Return what is wrong with the range that is asked for, if anything is."""
        length, size = request.length, self._disk.size
        if request.command == nbd.Command.FLUSH:
            return (nbd.Errno.EINVAL, "a flush has no range") if request.offset or length else None
        if length == 0 or request.offset + length > size:
            return nbd.Errno.EINVAL, f"{length} bytes at {request.offset} are not inside of {size}"
        if request.command != nbd.Command.BLOCK_STATUS and length > nbd.MOST_PAYLOAD:
            return nbd.Errno.EOVERFLOW, f"{length} bytes are more than {nbd.MOST_PAYLOAD}"
        return None

    def _read(self, request: _Request, buffer: memoryview) -> None:
        """Answer in chunks, each of which stands for itself; the last is empty."""
        offset, length = request.offset, request.length
        look = length >= _WORTH_A_LOOK
        for start, size, holds in _parts(self._disk, offset, length) if look else ((offset, length, True),):
            if not holds:
                self._chunk(request, 0, nbd.Chunk.OFFSET_HOLE, struct.pack(">QI", start, size))
                continue
            for at, part in _pieces(start, size, buffer):
                self._disk.read_into(at, part)
                done = nbd.DONE if at + len(part) == offset + length else 0
                self._chunk(request, done, nbd.Chunk.OFFSET_DATA, struct.pack(">Q", at), part)
        if not holds:
            self._chunk(request, nbd.DONE, nbd.Chunk.NONE)

    def _read_at_once(self, request: _Request, buffer: memoryview, head: bytes) -> None:
        """Answer a client that wants all of it behind one header.

        Raises:
            VmkeepError: the first piece cannot be read; nothing was sent.
            ValueError: a later one cannot: half of a reply cannot be taken back.
        """
        begun = False
        with contextlib.ExitStack() as stack:
            for at, part in _pieces(request.offset, request.length, buffer):
                try:
                    self._disk.read_into(at, part)
                except VmkeepError as error:
                    if begun:
                        raise ValueError(f"nothing, but half of its reply was sent: {error}") from error
                    raise
                if not begun:
                    stack.enter_context(self._sending)
                self._send_now(b"" if begun else head, part)
                begun = True

    def _status(self, request: _Request) -> None:
        most = 1 if request.flags & nbd.CommandFlag.REQ_ONE else _MOST_STATUS
        found = bytearray(struct.pack(">I", self._agreed.context))
        for _, size, holds in _parts(self._disk, request.offset, request.length, most=most):
            found += struct.pack(">II", size, 0 if holds else nbd.STATE_HOLE | nbd.STATE_ZERO)
        self._chunk(request, nbd.DONE, nbd.Chunk.BLOCK_STATUS, bytes(found))

    def _done(self, request: _Request) -> None:
        if self._agreed.structured:
            self._chunk(request, nbd.DONE, nbd.Chunk.NONE)
        else:
            self._send(nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, 0, request.cookie))

    def _fail(self, request: _Request, error: nbd.Errno, message: str) -> None:
        if self._agreed.structured:
            text = message.encode()[:4096]
            body = struct.pack(">IH", error, len(text)) + text
            self._chunk(request, nbd.DONE, nbd.Chunk.ERROR, body)
        else:
            self._send(nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, error, request.cookie))

    def _head(self, request: _Request, flags: int, kind: nbd.Chunk, length: int) -> bytes:
        return nbd.CHUNK.pack(nbd.CHUNK_MAGIC, flags, kind, request.cookie, length)

    def _chunk(
        self,
        request: _Request,
        flags: int,
        kind: nbd.Chunk,
        body: bytes = b"",
        data: memoryview | None = None,
    ) -> None:
        length = len(body) + (len(data) if data is not None else 0)
        self._send(self._head(request, flags, kind, length) + body, data)

    def _send(self, head: bytes, data: memoryview | None = None) -> None:
        with self._sending:
            self._send_now(head, data)

    def _send_now(self, head: bytes, data: memoryview | None) -> None:
        if data is None:
            self._connection.sendall(head)
            return
        sent = self._connection.sendmsg([head, data])
        if sent < len(head):
            self._connection.sendall(head[sent:])
            sent = len(head)
        if sent < len(head) + len(data):
            self._connection.sendall(data[sent - len(head) :])


def _pieces(offset: int, length: int, buffer: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield offset and place of each piece of a range; the place is used again for the next."""
    for at in range(offset, offset + length, len(buffer)):
        yield at, buffer[: min(len(buffer), offset + length - at)]


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
