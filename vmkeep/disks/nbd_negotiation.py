"""How an NBD client and our server agree on an export ("Newstyle negotiation")."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.disks import nbd_protocol as nbd
from vmkeep.units import KiB, MiB

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from vmkeep.disks.nbd_server import Readable

_FLAGS: Final = (
    nbd.Transmission.HAS_FLAGS
    | nbd.Transmission.READ_ONLY
    | nbd.Transmission.SEND_FLUSH
    | nbd.Transmission.SEND_DF
    | nbd.Transmission.CAN_MULTI_CONN
    | nbd.Transmission.SEND_CACHE
)
_CONTEXT: Final = 1
_MOST_OPTIONS: Final = 128
_PATIENCE_S: Final = 30.0
"""Who does not say what it wants by then does not want anything."""


@dataclass(slots=True)
class Negotiated:
    """What was agreed."""

    export: str = ""
    structured: bool = False
    """Whether replies come in chunks."""
    allocation: bool = False
    """Whether the client may ask which parts hold data."""
    context: int = _CONTEXT
    """The number of that metadata context."""


def negotiate(connection: socket.socket, exports: Mapping[str, Readable]) -> Negotiated | None:
    """Return what a client and we agree on; `None`: it left.

    Raises:
        ValueError: it broke the protocol.
        OSError: it went away, or said nothing for long.
        EOFError: it went away.
    """
    connection.settimeout(_PATIENCE_S)
    ours = nbd.Handshake.FIXED_NEWSTYLE | nbd.Handshake.NO_ZEROES
    connection.sendall(nbd.GREETING.pack(nbd.MAGIC, nbd.OPTION_MAGIC, ours))
    (theirs,) = struct.unpack(">I", receive(connection, 4))
    if theirs & ~int(ours):  # an inverted IntFlag would only have the flags that it knows
        raise ValueError(f"handshake flags {theirs:#x}")
    talk = _Talk(connection, exports, zeroes=not theirs & nbd.Handshake.NO_ZEROES)
    for _ in range(_MOST_OPTIONS):
        magic, option, length = nbd.OPTION.unpack(receive(connection, nbd.OPTION.size))
        if magic != nbd.OPTION_MAGIC or length > nbd.MOST_OPTION:
            raise ValueError(f"an option that begins with {magic!r}, of {length} bytes")
        over = talk.take(option, receive(connection, length))
        if over:
            connection.settimeout(None)
            return talk.agreed if talk.entered else None
    raise ValueError(f"more than {_MOST_OPTIONS} options")


class _Talk:
    def __init__(self, connection: socket.socket, exports: Mapping[str, Readable], *, zeroes: bool) -> None:
        self._connection, self._exports, self._zeroes = connection, exports, zeroes
        self.agreed = Negotiated()
        self.entered = False
        self._context_of: str | None = None
        """The export for which the client chose the metadata context: for another it does not count."""

    def take(self, option: int, data: bytes) -> bool:
        """Answer one option; tell whether the negotiation is over."""
        match option:
            case nbd.Option.EXPORT_NAME:
                return self._enter_old(data)
            case nbd.Option.ABORT:
                self._reply(option, nbd.Reply.ACK)
                return True
            case nbd.Option.LIST:
                self._list(option, data)
            case nbd.Option.INFO | nbd.Option.GO:
                return self._info(option, data)
            case nbd.Option.STRUCTURED_REPLY:
                self.agreed.structured = True
                self._reply(option, nbd.Reply.ACK)
            case nbd.Option.LIST_META_CONTEXT | nbd.Option.SET_META_CONTEXT:
                self._contexts(option, data)
            case _:
                self._reply(option, nbd.Reply.ERR_UNSUP)
        return False

    def _enter_old(self, data: bytes) -> bool:
        """Enter an export in the oldest way, which has no way to say that there is none."""
        name = data.decode("utf-8", "replace")
        if name in self._exports:
            self._enter(name)
            tail = bytes(124) if self._zeroes else b""
            self._connection.sendall(struct.pack(">QH", self._exports[name].size, _FLAGS) + tail)
        return True

    def _enter(self, name: str) -> None:
        self.entered, self.agreed.export = True, name
        self.agreed.allocation = self._context_of == name

    def _list(self, option: int, data: bytes) -> None:
        if data:
            self._reply(option, nbd.Reply.ERR_INVALID)
            return
        for name in self._exports:
            text = name.encode()
            self._reply(option, nbd.Reply.SERVER, struct.pack(">I", len(text)) + text)
        self._reply(option, nbd.Reply.ACK)

    def _info(self, option: int, data: bytes) -> bool:
        try:
            (length,) = struct.unpack_from(">I", data)
            name = data[4 : 4 + length].decode()
            (count,) = struct.unpack_from(">H", data, 4 + length)
            asked = struct.unpack_from(f">{count}H", data, 6 + length)
        except (struct.error, UnicodeDecodeError):
            self._reply(option, nbd.Reply.ERR_INVALID)
            return False
        disk = self._exports.get(name)
        if disk is None:
            self._reply(option, nbd.Reply.ERR_UNKNOWN, f"there is no export {name!r}".encode())
            return False
        self._reply(option, nbd.Reply.INFO, struct.pack(">HQH", nbd.INFO_EXPORT, disk.size, _FLAGS))
        if nbd.INFO_BLOCK_SIZE in asked:
            sizes = struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 1, 64 * KiB, 32 * MiB)
            self._reply(option, nbd.Reply.INFO, sizes)
        self._reply(option, nbd.Reply.ACK)
        if option == nbd.Option.GO:
            self._enter(name)
        return self.entered

    def _contexts(self, option: int, data: bytes) -> None:
        try:
            name, queries = _parse_queries(data)
        except (struct.error, UnicodeDecodeError):
            self._reply(option, nbd.Reply.ERR_INVALID)
            return
        if name not in self._exports or not self.agreed.structured:
            self._reply(option, nbd.Reply.ERR_UNKNOWN if self.agreed.structured else nbd.Reply.ERR_INVALID)
            return
        wanted = nbd.ALLOCATION in queries
        if option == nbd.Option.SET_META_CONTEXT:
            self._context_of = name if wanted else None
        elif not queries or b"base:" in queries:
            wanted = True
        if wanted:
            number = _CONTEXT if option == nbd.Option.SET_META_CONTEXT else 0
            self._reply(option, nbd.Reply.META_CONTEXT, struct.pack(">I", number) + nbd.ALLOCATION)
        self._reply(option, nbd.Reply.ACK)

    def _reply(self, option: int, kind: nbd.Reply, data: bytes = b"") -> None:
        self._connection.sendall(nbd.OPTION_REPLY.pack(nbd.REPLY_MAGIC, option, kind, len(data)) + data)


def _parse_queries(data: bytes) -> tuple[str, list[bytes]]:
    """Return the export's name and the contexts that are asked for."""
    (length,) = struct.unpack_from(">I", data)
    name = data[4 : 4 + length].decode()
    at = 4 + length
    (count,) = struct.unpack_from(">I", data, at)
    at += 4
    queries = []
    for _ in range(min(count, len(data))):
        (length,) = struct.unpack_from(">I", data, at)
        queries.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return name, queries


def receive(connection: socket.socket, length: int) -> bytes:
    """Return exactly *length* bytes.

    Raises:
        EOFError: the connection ended before.
    """
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        count = connection.recv_into(view[done:])
        if count == 0:
            raise EOFError
        done += count
    return bytes(data)
