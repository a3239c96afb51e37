"""Packs: many sealed chunks in one object.

    "VMKPACK" 0x01 | name 16 | epoch - 1 u8 | 7 zeros               header, 32 bytes
    record header 48 | AES-256-GCM(chunk or zstd frame)             for each chunk
    AES-256-GCM(record headers and their offsets)                   footer
    footer length u32 | records u32 | "VMKFOOT" 0x01                trailer, 16 bytes

The key is derived with the pack's name, which is random, and the nonce of a record is its number in the
pack. A pack that was begun by a process that died is never continued, so no nonce is used for two texts.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import zstandard
from cryptography.exceptions import InvalidTag

from vmkeep.errors import IntegrityError
from vmkeep.repository.codec import ZSTD, decompress
from vmkeep.repository.crypto import TAG_SIZE
from vmkeep.repository.index import ENTRY, PackInfo

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from vmkeep.repository.crypto import Buffer, EpochKeys, Keys
    from vmkeep.repository.index import Location

HEADER: Final = struct.Struct("<8s16sB7x")
RECORD: Final = struct.Struct("<32sIIIB3x")
"""Id, number, bytes that follow, bytes of the chunk, codec."""
TRAILER: Final = struct.Struct("<II8s")
MAGIC: Final = b"VMKPACK\x01"
FOOT: Final = b"VMKFOOT\x01"
_MOST_RECORDS: Final = 2**14
"""Keeps the footer small, and the list of entries while the pack is filled."""
_FOOTER_NUMBER: Final = 2**32 - 1
"""A number that no record has: it would need 64 GiB of headers alone."""


@dataclass(frozen=True, slots=True)
class FinishedPack:
    """A pack whose bytes will not change any more."""

    info: PackInfo
    entries: NDArray[Any]
    """Of dtype `ENTRY`, in order of offset; `pack` is 0."""


class PackWriter:
    """Appends chunks to a new file. Not safe to use from several threads.

    Args:
        path: where to write; must not exist.
    """

    def __init__(self, keys: EpochKeys, path: Path) -> None:
        self._epoch = keys.epoch
        self.name = secrets.token_bytes(16)
        self.path = path
        self._binding = keys.binding("pack", self.name)
        self._cipher = keys.pack_cipher(self.name)
        self._file = path.open("xb", buffering=0)
        self._entries: list[tuple[bytes, int, int, int]] = []
        self.size = 0
        self._crc = 0
        try:
            self._write(HEADER.pack(MAGIC, self.name, keys.epoch - 1))
        except BaseException:
            self.abandon()
            raise

    def append(self, chunk: bytes, data: Buffer, raw: int, codec: int) -> int:
        """Encrypt and write one chunk, and return what it takes, in bytes.

        Args:
            chunk: its id.
            data: its bytes, or their zstd frame, as *codec* says.
            raw: the length of its bytes before compression.

        Raises:
            OSError: the disk is full, or another fault of the spool.
        """
        number, offset = len(self._entries), self.size
        head = RECORD.pack(chunk, number, len(data) + TAG_SIZE, raw, codec)
        sealed = self._cipher.encrypt(_nonce(number), data, self._binding + head)
        self._write(head, sealed)
        self._entries.append((chunk, offset, len(sealed), raw))
        return len(head) + len(sealed)

    def full(self, most: int) -> bool:
        """Tell whether it must be finished: with another chunk and the footer it may exceed *most* bytes."""
        return self.size > most - most // 8 or len(self._entries) >= _MOST_RECORDS

    def finish(self) -> FinishedPack:
        """Write footer and trailer; on return the file is on stable storage.

        Raises:
            OSError: as above.
        """
        entries = np.zeros(len(self._entries), ENTRY)
        if self._entries:
            ids, offsets, stored, raw = zip(*self._entries, strict=True)
            entries["id"] = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
            entries["offset"], entries["stored"], entries["raw"] = offsets, stored, raw
        footer = zstandard.ZstdCompressor(level=1).compress(entries.tobytes())
        sealed = self._cipher.encrypt(_nonce(_FOOTER_NUMBER), footer, self._binding + b"footer")
        self._write(sealed, TRAILER.pack(len(sealed), len(entries), FOOT))
        os.fsync(self._file.fileno())
        self._file.close()
        return FinishedPack(PackInfo(self.name, self.size, self._epoch, self._crc), entries)

    def abandon(self) -> None:
        """Close and remove the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, *parts: bytes) -> None:
        expected = sum(map(len, parts))
        for part in parts:
            self._crc = zlib.crc32(part, self._crc)
        written = os.writev(self._file.fileno(), parts)
        if written != expected:  # the disk is full, or nearly; the rest says why
            rest = b"".join(parts)[written:]
            while rest:
                rest = rest[self._file.write(rest) :]
        self.size += expected


class PackReader:
    """Opens the records of one pack.

    Raises:
        IntegrityError: there is no such data epoch.
        AccessError: the keys of its epoch are not known.
    """

    def __init__(self, keys: Keys, pack: PackInfo) -> None:
        self._keys = keys
        self._epoch = pack.epoch
        its = keys.of(pack.epoch)
        self._binding = its.binding("pack", pack.name)
        self._cipher = its.pack_cipher(pack.name)

    def chunk(self, record: memoryview, wanted: Location) -> Buffer:
        """Return the bytes of the chunk *wanted* from its record.

        Raises:
            IntegrityError: the record is damaged, or another one.
        """
        return self._opened(record, wanted)[0]

    def body(self, record: memoryview, wanted: Location) -> tuple[Buffer, int]:
        """Return what a writer appended for *wanted*, checked all the same: bytes or frame, and codec.

        Raises:
            IntegrityError: as above.
        """
        return self._opened(record, wanted)[1:]

    def _opened(self, record: memoryview, wanted: Location) -> tuple[Buffer, Buffer, int]:
        if len(record) != RECORD.size + wanted.stored:
            raise IntegrityError("the pack is cut off there")
        chunk, number, stored, raw, codec = RECORD.unpack_from(record)
        if (chunk, stored, raw) != (wanted.id, wanted.stored, wanted.raw):
            raise IntegrityError("the record's header is not the one that the index describes")
        head, body = bytes(record[: RECORD.size]), record[RECORD.size :]
        try:
            frame: Buffer = self._cipher.decrypt(_nonce(number), body, self._binding + head)
        except InvalidTag:
            raise IntegrityError("the record does not authenticate") from None
        data = decompress(frame, codec, raw)
        if len(data) != raw or not self._keys.is_id(chunk, data, self._epoch):
            raise IntegrityError("the bytes do not hash to the chunk's id")
        return data, frame, codec

    def footer(self, data: bytes) -> NDArray[Any]:
        """Return the entries in footer and trailer (*data* ends with them) of a pack.

        Raises:
            IntegrityError: they are damaged.
        """
        length = footer_length(data[-TRAILER.size :])
        body = data[-TRAILER.size - length : -TRAILER.size]
        try:
            plain = self._cipher.decrypt(_nonce(_FOOTER_NUMBER), body, self._binding + b"footer")
        except InvalidTag:
            raise IntegrityError("the pack's footer does not authenticate") from None
        size = TRAILER.unpack(data[-TRAILER.size :])[1] * ENTRY.itemsize
        return np.frombuffer(decompress(plain, ZSTD, size), ENTRY)


def epoch_of(header: bytes) -> int:
    """Return the data epoch that the beginning of a pack names.

    Raises:
        IntegrityError: this is no pack.
    """
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise IntegrityError("the pack's header is damaged or cut off")
    epoch: int = HEADER.unpack_from(header)[2]
    return epoch + 1


def footer_length(trailer: bytes) -> int:
    """Return the length of the footer in front of a pack's *trailer*.

    Raises:
        IntegrityError: this is no trailer.
    """
    if len(trailer) != TRAILER.size or not trailer.endswith(FOOT):
        raise IntegrityError("the pack's trailer is damaged or cut off")
    length: int = TRAILER.unpack(trailer)[0]
    return length


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
