"""Objects that are encrypted whole: points, indexes, records of runs and sessions.

    "VMKO" | version u8 | epoch - 1 u8 | 2 zeros | salt 16 | AES-256-GCM( length u32 | zstd frame | zeros )

Each has a key of its own, derived with its salt, so its nonce (12 zeros) is never used twice.
"""

from __future__ import annotations

import secrets
import struct
from typing import TYPE_CHECKING, Final

import zstandard
from cryptography.exceptions import InvalidTag

from vmkeep.errors import IntegrityError
from vmkeep.repository.crypto import SALT_SIZE, TAG_SIZE, VERSION

if TYPE_CHECKING:
    from vmkeep.repository.crypto import Keys

_HEAD: Final = struct.Struct(f"<4sBB2x{SALT_SIZE}s")
_MAGIC: Final = b"VMKO"
_LENGTH: Final = struct.Struct("<I")
_NONCE: Final = bytes(12)
OVERHEAD: Final = _HEAD.size + _LENGTH.size + TAG_SIZE
_LARGEST: Final = 2**31


def seal(keys: Keys, kind: str, key: str, payload: bytes, *, size: int = 0) -> bytes:
    """Return *payload* compressed and encrypted, tied to its *kind* and to the *key* of its object.

    Args:
        size: the least size of the result, in bytes; it is filled up with zeros inside.
    """
    salt = secrets.token_bytes(SALT_SIZE)
    frame = zstandard.ZstdCompressor(level=3).compress(payload)
    plain = (_LENGTH.pack(len(frame)) + frame).ljust(size - _HEAD.size - TAG_SIZE, b"\0")
    newest = keys.newest
    head = _HEAD.pack(_MAGIC, VERSION, newest.epoch - 1, salt)
    return head + newest.object_cipher(salt).encrypt(_NONCE, plain, head + newest.binding(kind, key.encode()))


def epoch_of(data: bytes) -> int:
    """Return the data epoch in which an object that was unsealed was sealed."""
    epoch: int = _HEAD.unpack_from(data)[2]
    return epoch + 1


def unseal(keys: Keys, kind: str, key: str, data: bytes) -> bytes:
    """Return what was sealed as *kind* under *key*.

    Raises:
        IntegrityError: the object is damaged, or it is another one than its name says.
        AccessError: it is of a data epoch that what opened the repository does not open.
    """
    if len(data) < OVERHEAD or data[:5] != _MAGIC + bytes([VERSION]):
        raise IntegrityError(f"{key} is damaged: it does not begin as a {kind} does; do not trust it")
    head, body = data[: _HEAD.size], memoryview(data)[_HEAD.size :]
    _, _, epoch, salt = _HEAD.unpack(head)
    try:
        its = keys.of(epoch + 1)
    except IntegrityError as error:
        raise IntegrityError(f"{key} is damaged, or keys are missing: {error}; do not trust it") from None
    try:
        plain = its.object_cipher(salt).decrypt(_NONCE, body, head + its.binding(kind, key.encode()))
    except InvalidTag:
        raise IntegrityError(
            f"{key} is damaged: its {len(data)} bytes do not authenticate as a {kind}; do not trust it"
        ) from None
    (length,) = _LENGTH.unpack_from(plain)
    frame = memoryview(plain)[_LENGTH.size : _LENGTH.size + length]
    return zstandard.ZstdDecompressor().decompress(frame, max_output_size=_LARGEST)
