"""The numbers of the NBD protocol, by the section of its document that they are in.

See: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

from vmkeep.units import KiB, MiB

# "Newstyle negotiation".
MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
REPLY_MAGIC: Final = 0x0003E889045565A9
GREETING: Final = struct.Struct(">8s8sH")
OPTION: Final = struct.Struct(">8sII")
"""Magic, option, length of what follows."""
OPTION_REPLY: Final = struct.Struct(">QIII")
"""Magic, option, type of the reply, length of what follows."""
MOST_OPTION: Final = 64 * KiB
"""More than this in an option is no honest request."""


class Handshake(IntFlag):
    """Flags that both sides exchange first."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    """What a client may ask for before it enters an export."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(IntEnum):
    """Answers to options."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 2**31 + 1
    ERR_INVALID = 2**31 + 3
    ERR_UNKNOWN = 2**31 + 6


REPLY_ERROR: Final = 2**31
"""The bit that all replies of errors have."""
INFO_EXPORT: Final = 0
INFO_BLOCK_SIZE: Final = 3
ALLOCATION: Final = b"base:allocation"


class Transmission(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_WRITE_ZEROES = 64
    SEND_DF = 128
    CAN_MULTI_CONN = 256
    SEND_CACHE = 1024


# "Request message".
REQUEST_MAGIC: Final = 0x25609513
REQUEST: Final = struct.Struct(">IHHQQI")
"""Magic, flags, command, cookie, offset, length."""
MOST_PAYLOAD: Final = 32 * MiB
"""What every server must take in one read or write ("Block size constraints")."""


class Command(IntEnum):
    """Requests."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """Flags of requests."""

    DF = 4
    REQ_ONE = 8


# "Simple reply message", "Structured reply chunk message".
SIMPLE: Final = struct.Struct(">IIQ")
"""Magic, error, cookie."""
SIMPLE_MAGIC: Final = 0x67446698
CHUNK: Final = struct.Struct(">IHHQI")
"""Magic, flags, type, cookie, length of what follows."""
CHUNK_MAGIC: Final = 0x668E33EF
DONE: Final = 1


class Chunk(IntEnum):
    """Types of structured reply chunks."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 2**15 + 1


CHUNK_ERROR: Final = 2**15
"""The bit that all chunks of errors have."""


class Errno(IntEnum):
    """Errors that replies carry."""

    EPERM = 1
    EIO = 5
    EINVAL = 22
    EOVERFLOW = 75
    ENOTSUP = 95


STATE_HOLE: Final = 1
STATE_ZERO: Final = 2
