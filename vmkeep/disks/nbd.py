"""One connection to an NBD server on a unix socket, used by one thread at a time.

A structured reply comes in chunks, in any order, until one is marked done:

    request    read [0, 1 MiB)
    reply      data [0, 64 KiB)   hole [64 KiB, 960 KiB)   data [...)  done

Each of them has to bring something new, so that no reply is without end.

See: `nbd_protocol`
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vmkeep.disks import nbd_protocol as nbd
from vmkeep.disks.device import Extent
from vmkeep.errors import SourceError, TemporaryError
from vmkeep.units import GiB, KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHUNK: Final = struct.Struct(">HHQI")  # behind the magic, which says which kind of reply it is
_SIMPLE_REPLY: Final = 0x7FFF  # ours: no chunk type, and never right as the answer to a read
_MAX_ERROR_CHUNK: Final = 64 * KiB
_MOST_REPLIES: Final = 64
"""Replies to one option: we ask for one export, and one context of it."""
ALLOCATION: Final = nbd.ALLOCATION.decode()
# See: QEMU, docs/interop/nbd.txt: bit 0 says that the range is dirty.
DIRTY_BITMAP: Final = "qemu:dirty-bitmap:"
_STATE_DIRTY: Final = 1
# Status and zeroing take any 32-bit length, of which we use a part that is a multiple of every alignment.
_MAX_LENGTH: Final = 2 * GiB
# How a long read is cut so that the server works on several parts at once.
_PIECE: Final = 512 * KiB
_PIPELINE: Final = 16


@dataclass(slots=True)
class _Read:
    """A read that is under way."""

    offset: int
    buffer: memoryview
    missing: int = field(init=False)
    """Bytes that did not come yet."""

    def __post_init__(self) -> None:
        self.missing = len(self.buffer)


class NbdConnection:
    """A negotiated connection. After an error other than one the server reported it is `broken`."""

    def __init__(self, path: Path, export: str, *, timeout_s: float, context: str = ALLOCATION) -> None:
        """Connect to the unix socket *path* and enter *export*.

        Args:
            context: What `status` tells: `ALLOCATION`, or `DIRTY_BITMAP` and the name of a bitmap.

        Raises:
            TemporaryError: nobody answers in time.
            SourceError: the server breaks the protocol, or does not have the export.
        """
        self._where = f"NBD server {path}, export {export!r}"
        self.broken = False
        self.size = 0
        self._flags = 0
        self._cookie = 0
        self._context = context
        self._knows_context = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            self._connect(path)
            self._negotiate(export.encode())
        except BaseException:
            self._socket.close()
            raise

    @property
    def can_write(self) -> bool:
        """Whether the export takes writes."""
        return not self._flags & nbd.Transmission.READ_ONLY

    @property
    def knows_context(self) -> bool:
        """Whether the server answers `status`."""
        return self._knows_context

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*; several parts are under way at once."""
        waiting: dict[int, _Read] = {}
        sent = 0
        while sent < len(buffer) or waiting:
            if sent < len(buffer) and len(waiting) < _PIPELINE:
                part = buffer[sent : sent + _PIECE]
                waiting[self._send(nbd.Command.READ, offset + sent, len(part))] = _Read(offset + sent, part)
                sent += len(part)
            else:
                self._receive_read(waiting)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of *data*."""
        for start in range(0, len(data), nbd.MOST_PAYLOAD):
            part = data[start : start + nbd.MOST_PAYLOAD]
            self._finish(
                self._send(nbd.Command.WRITE, offset + start, len(part), part), "write", offset + start
            )

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros; the server may deallocate it."""
        while length > 0:
            part = min(length, _MAX_LENGTH)
            if self._flags & nbd.Transmission.SEND_WRITE_ZEROES:
                self._finish(self._send(nbd.Command.WRITE_ZEROES, offset, part), "zero", offset)
            else:
                part = min(part, MiB)
                self.write(offset, memoryview(bytes(part)))
            offset, length = offset + part, length - part

    def trim(self, offset: int, length: int) -> None:
        """Tell the server that the range is not needed; what it reads as afterwards is open."""
        self._finish(self._send(nbd.Command.TRIM, offset, length), "trim", offset)

    def flush(self) -> None:
        """Return when everything written is on stable storage."""
        if self._flags & nbd.Transmission.SEND_FLUSH:
            self._finish(self._send(nbd.Command.FLUSH, 0, 0), "flush", 0)

    def status(self, offset: int, length: int) -> list[tuple[Extent, bool]]:
        """Return the server's extents from *offset* on, each with whether it may hold data, or is dirty.

        They may cover less than was asked, but never nothing; the last is cut where it is too long.
        """
        cookie = self._send(nbd.Command.BLOCK_STATUS, offset, min(length, _MAX_LENGTH))
        found: list[tuple[Extent, bool]] = []
        done = False
        while not done:
            done, kind, payload = self._receive_chunk(cookie)
            if kind == nbd.Chunk.BLOCK_STATUS and not found:  # one for each context
                found = self._extents(offset, length, payload)
            elif kind != nbd.Chunk.NONE or payload or not done:
                raise self._broken(f"answered a block status with reply type {kind} of {len(payload)} bytes")
            if not found:
                raise self._broken(f"answered the block status at byte {offset} with nothing")
        return found

    def close(self) -> None:
        """Say good-bye and let go."""
        if self._socket.fileno() < 0:
            return
        if not self.broken:
            try:
                self._socket.sendall(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.Command.DISC, 0, 0, 0))
            except OSError:
                self.broken = True  # it is gone already, which is what we want
        self._socket.close()

    # --- negotiation -------------------------------------------------------------------------

    def _connect(self, path: Path) -> None:
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            raise TemporaryError(f"{self._where}: cannot connect: {error}") from error

    def _negotiate(self, export: bytes) -> None:
        magic, option, flags = struct.unpack(">8s8sH", self._greeting())
        if magic != nbd.MAGIC or option != nbd.OPTION_MAGIC or not flags & nbd.Handshake.FIXED_NEWSTYLE:
            raise self._broken(f"greeted with {(magic + option)!r}, expected fixed newstyle NBD")
        self._send_all(struct.pack(">I", nbd.Handshake.FIXED_NEWSTYLE | flags & nbd.Handshake.NO_ZEROES))
        if self._option(nbd.Option.STRUCTURED_REPLY, b"") is None:
            raise SourceError(f"{self._where}: the server cannot do structured replies, which vmkeep needs")
        context = self._context.encode()
        query = struct.pack(">I", len(export)) + export + struct.pack(">II", 1, len(context)) + context
        replies = self._option(nbd.Option.SET_META_CONTEXT, query) or []
        self._knows_context = any(
            kind == nbd.Reply.META_CONTEXT and body[4:] == context for kind, body in replies
        )
        information = self._option(
            nbd.Option.GO, struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        )
        if information is None:
            raise SourceError(f"{self._where}: the server does not have this export")
        for kind, body in information:
            if (
                kind == nbd.Reply.INFO
                and len(body) == 12
                and struct.unpack_from(">H", body)[0] == nbd.INFO_EXPORT
            ):
                self.size, self._flags = struct.unpack_from(">QH", body, 2)
                return
        raise self._broken("did not say how large the export is")

    def _greeting(self) -> bytes:
        try:
            return self._receive(18)
        except TemporaryError as error:
            raise TemporaryError(
                f"{error} (before a greeting: all of its connections may be taken)"
            ) from error

    def _option(self, option: int, data: bytes) -> list[tuple[int, bytes]] | None:
        """Return the replies before the acknowledgement, or None when the server declines."""
        self._send_all(nbd.OPTION_MAGIC + struct.pack(">II", option, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while True:
            magic, echoed, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != nbd.REPLY_MAGIC or echoed != option or length > nbd.MOST_OPTION:
                raise self._broken(
                    f"answered option {option} with {magic:#x}, option {echoed}, {length} bytes"
                )
            body = self._receive(length)
            if kind & nbd.REPLY_ERROR:
                return None
            if kind == nbd.Reply.ACK:
                return replies
            if len(replies) == _MOST_REPLIES:
                raise self._broken(f"answered option {option} more than {_MOST_REPLIES} times")
            replies.append((kind, body))

    # --- transmission ------------------------------------------------------------------------

    def _send(self, command: int, offset: int, length: int, payload: memoryview | None = None) -> int:
        self._cookie += 1
        self._send_all(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, command, self._cookie, offset, length))
        if payload is not None:
            self._send_all(payload)
        return self._cookie

    def _receive_read(self, waiting: dict[int, _Read]) -> None:
        """Take one chunk of one of the *waiting* reads; remove the read when it is done."""
        flags, kind, cookie, length = self._receive_header()
        read = waiting.get(cookie)
        if read is None:
            raise self._broken(f"answered request {cookie}, which was not sent")
        if kind == nbd.Chunk.OFFSET_DATA and length > 8:
            (start,) = struct.unpack(">Q", self._receive(8))
            self._receive_into(self._part(read, start, length - 8))
        elif kind == nbd.Chunk.OFFSET_HOLE and length == 12:
            start, size = struct.unpack(">QI", self._receive(12))
            part = self._part(read, start, size)
            part[:] = bytes(len(part))
        elif kind & nbd.CHUNK_ERROR:
            self._refuse(length, "read", read.offset)
        elif kind != nbd.Chunk.NONE or length or not flags & nbd.DONE:
            raise self._broken(f"answered a read with reply type {kind} of {length} bytes")
        if flags & nbd.DONE:
            if read.missing:
                raise self._broken(f"left out {read.missing} bytes of the read at byte {read.offset}")
            del waiting[cookie]

    def _part(self, read: _Read, start: int, length: int) -> memoryview:
        """Return where the bytes from *start* belong; the parts of a read may not overlap."""
        at = start - read.offset
        if not 0 <= at < at + length <= len(read.buffer) or length > read.missing:
            raise self._broken(f"answered bytes {start} to {start + length}, which were not asked for")
        read.missing -= length
        return read.buffer[at : at + length]

    def _finish(self, cookie: int, verb: str, offset: int) -> None:
        """Wait for the reply of a request that returns nothing."""
        flags, kind, echoed, length = self._receive_header()
        if echoed != cookie:
            raise self._broken(f"answered request {echoed}, expected {cookie}")
        if kind & nbd.CHUNK_ERROR:
            self._refuse(length, verb, offset)
        if kind not in {nbd.Chunk.NONE, _SIMPLE_REPLY} or length or not flags & nbd.DONE:
            raise self._broken(f"answered a {verb} with reply type {kind} of {length} bytes")

    def _receive_chunk(self, cookie: int) -> tuple[bool, int, bytes]:
        flags, kind, echoed, length = self._receive_header()
        if echoed != cookie or length > nbd.MOST_PAYLOAD:
            raise self._broken(f"answered request {echoed} with {length} bytes, expected {cookie}")
        if kind & nbd.CHUNK_ERROR:
            self._refuse(length, "block status", 0)
        return bool(flags & nbd.DONE), kind, self._receive(length)

    def _extents(self, offset: int, length: int, payload: bytes) -> list[tuple[Extent, bool]]:
        if len(payload) < 12 or len(payload) % 8 != 4:
            raise self._broken(f"sent a block status of {len(payload)} bytes")
        found = []
        end = offset + length
        for size, state in struct.iter_unpack(">II", payload[4:]):
            if size == 0 or offset >= end:
                break
            yes = bool(state & _STATE_DIRTY) if self._context != ALLOCATION else not state & nbd.STATE_ZERO
            found.append((Extent(offset, min(size, end - offset)), yes))
            offset += size
        return found

    def _receive_header(self) -> tuple[int, int, int, int]:
        """Return flags, kind, cookie and payload length; simple replies look like structured ones."""
        (magic,) = struct.unpack(">I", self._receive(4))
        if magic == nbd.CHUNK_MAGIC:
            flags, kind, cookie, length = _CHUNK.unpack(self._receive(_CHUNK.size))
            return flags, kind, cookie, length
        if magic == nbd.SIMPLE_MAGIC:
            code, cookie = struct.unpack(">IQ", self._receive(12))
            if code:
                raise self._failed(code, f"failed request {cookie}")
            return nbd.DONE, _SIMPLE_REPLY, cookie, 0
        raise self._broken(f"sent {magic:#010x} where a reply should begin")

    def _refuse(self, length: int, verb: str, offset: int) -> None:
        """Raise the error that an error chunk of *length* bytes carries."""
        if not 6 <= length <= _MAX_ERROR_CHUNK:
            raise self._broken(f"sent an error chunk of {length} bytes")
        body = self._receive(length)
        code, words = struct.unpack_from(">IH", body)
        text = body[6 : 6 + words].decode("utf-8", "replace")
        raise self._failed(code, f"{verb} at byte {offset} failed{': ' + text if text else ''}")

    def _failed(self, code: int, text: str) -> SourceError:
        # Other requests of the pipeline may still be under way: the stream is of no more use.
        self.broken = True
        return SourceError(f"{self._where}: {text} ({os.strerror(code)})")

    def _broken(self, text: str) -> SourceError:
        self.broken = True
        return SourceError(f"{self._where} {text}: it breaks the protocol")

    # --- bytes -------------------------------------------------------------------------------

    def _send_all(self, data: bytes | memoryview) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self, length: int) -> bytes:
        buffer = bytearray(length)
        self._receive_into(memoryview(buffer))
        return bytes(buffer)

    def _receive_into(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = self._socket.recv_into(buffer[done:])
            except OSError as error:
                raise self._lost(error) from error
            if count == 0:
                raise self._lost("it closed the connection")
            done += count

    def _lost(self, why: object) -> TemporaryError:
        self.broken = True
        return TemporaryError(f"{self._where}: the connection was lost: {why}")


def data_extents(connection: NbdConnection, size: int) -> Iterator[Extent]:
    """Yield the ranges of an export that may hold data, or are dirty, in order and merged."""
    if not connection.knows_context:
        if size:
            yield Extent(0, size)
        return
    offset = 0
    pending: Extent | None = None
    while offset < size:
        for extent, marked in connection.status(offset, size - offset):
            offset = extent.end
            if marked and pending is not None and pending.end == extent.start:
                pending = Extent(pending.start, pending.length + extent.length)
            elif marked:
                if pending is not None:
                    yield pending
                pending = extent
    if pending is not None:
        yield pending
