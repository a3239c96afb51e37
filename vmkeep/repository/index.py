"""Where chunks lie: sorted arrays, 56 bytes a chunk, never a dictionary of Python objects.

A table of packs, and one entry for each chunk, sorted by id:

    entry   id 32 | pack u32 | offset u32 | stored u32 | raw u32        (48 bytes, little-endian)

A look-up is a binary search over the first eight bytes of the ids, which are as good as random.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmkeep.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from vmkeep.repository.crypto import Buffer

ENTRY: Final = np.dtype(
    [("id", "u1", (32,)), ("pack", "<u4"), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4")]
)
_PACK: Final = struct.Struct("<16sQ")
_SIZE_BITS: Final = 56
"""Of the size in a table of packs; above it is the epoch less one."""
PACK_SIZE: Final = _PACK.size
"""Bytes of a pack in a table of packs."""
_COUNT: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class PackInfo:
    """A pack that exists."""

    name: bytes
    """16 bytes."""
    size: int
    epoch: int = 1
    """The data epoch whose keys it is encrypted with."""
    crc: int | None = field(default=None, compare=False)
    """CRC-32 of all its bytes; `None`: not known here, which is no difference."""

    def encode(self) -> bytes:
        """Return it as it stands in a table of packs."""
        return _PACK.pack(self.name, self.size | (self.epoch - 1) << _SIZE_BITS)

    @classmethod
    def table(cls, data: Buffer) -> Iterator[PackInfo]:
        """Yield the packs in a table."""
        for name, size in _PACK.iter_unpack(data):
            yield cls(name, size & (1 << _SIZE_BITS) - 1, (size >> _SIZE_BITS) + 1)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a chunk lies."""

    id: bytes
    pack: PackInfo
    offset: int
    stored: int
    """Bytes in the pack behind the record's header."""
    raw: int
    """Bytes of the chunk itself."""


@dataclass(frozen=True, slots=True)
class Index:
    """The chunks of some sessions; immutable."""

    packs: Sequence[PackInfo]
    entries: NDArray[Any]
    """Of dtype `ENTRY`, sorted by the first eight bytes of the id."""
    prefixes: NDArray[np.uint64] = field(repr=False)
    """The first eight bytes of the ids, as numbers, in the same order."""
    row: Callable[[int], np.void] | None = field(default=None, repr=False, compare=False)
    """Returns one of the entries, if there is a better way than to touch `entries`."""

    @classmethod
    def build(cls, packs: Sequence[PackInfo], entries: NDArray[Any]) -> Index:
        """Sort *entries*, whose `pack` counts into *packs*."""
        prefixes = _prefixes(entries["id"])
        order = np.argsort(prefixes, kind="stable")
        return cls(packs, entries[order], prefixes[order])

    @classmethod
    def empty(cls) -> Index:
        """Return an index without chunks."""
        return cls.build((), np.empty(0, ENTRY))

    @classmethod
    def merge(cls, indexes: Iterable[Index], *, without: frozenset[bytes] = frozenset()) -> Index:
        """Return one index of all, leaving out the chunks in the packs named in *without*."""
        packs: list[PackInfo] = []
        parts = [np.empty(0, ENTRY)]
        for index in indexes:
            part = index.entries.copy()
            keep = np.array([pack.name not in without for pack in index.packs], bool)
            if not keep.all():
                part = part[keep[part["pack"]]]
            # What is left out does not stay in the table either: it may be gone.
            part["pack"] = (np.cumsum(keep, dtype="<u4") - 1 + len(packs)).astype("<u4")[part["pack"]]
            packs.extend(pack for pack, kept in zip(index.packs, keep, strict=True) if kept)
            parts.append(part)
        return cls.build(packs, np.concatenate(parts))

    @classmethod
    def of_packs(cls, packs: Iterable[tuple[PackInfo, NDArray[Any]]]) -> Index:
        """Return the index of packs with their entries."""
        return cls.merge(cls.build((info,), entries) for info, entries in packs)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, chunk: bytes) -> bool:
        return self._find(chunk) is not None

    def locate(self, chunk: bytes) -> Location | None:
        """Return where a chunk lies, if it is known."""
        at = self._find(chunk)
        return None if at is None else self.location(at)

    def location(self, at: int) -> Location:
        """Return what entry number *at* says."""
        entry = self._row(at)
        return Location(
            entry["id"].tobytes(),
            self.packs[int(entry["pack"])],
            int(entry["offset"]),
            int(entry["stored"]),
            int(entry["raw"]),
        )

    def copies(self, chunk: bytes) -> list[Location]:
        """Return all places where a chunk lies; two sessions may have stored it at the same time."""
        prefix = np.uint64(int.from_bytes(chunk[:8], "big"))
        start, end = (int(self.prefixes.searchsorted(prefix, side)) for side in ("left", "right"))
        found = (self.location(at) for at in range(start, end))
        return [each for each in found if each.id == chunk]

    def mark(self, ids: NDArray[np.uint8], marks: NDArray[np.bool_]) -> bool:
        """Set *marks* where an entry is one of the chunks, for all copies of it.

        Args:
            ids: of shape (n, 32).
            marks: of the length of `entries`.

        Returns:
            Whether every chunk was found.
        """
        prefixes = _prefixes(ids)
        at = self.prefixes.searchsorted(prefixes, "left")
        end = self.prefixes.searchsorted(prefixes, "right")
        found = np.zeros(len(ids), bool)
        while (rows := np.flatnonzero(at < end)).size:  # more than once only for copies, or equal prefixes
            entries = self.entries[at[rows]]
            same = (entries["id"] == ids[rows]).all(axis=1)
            marks[at[rows[same]]] = True
            found[rows[same]] = True
            at[rows] += 1
        return bool(found.all())

    def _find(self, chunk: bytes) -> int | None:
        prefix = np.uint64(int.from_bytes(chunk[:8], "big"))
        at = int(self.prefixes.searchsorted(prefix))
        while at < len(self.prefixes) and self.prefixes[at] == prefix:
            if self._row(at)["id"].tobytes() == chunk:
                return at
            at += 1
        return None

    def _row(self, at: int) -> np.void:
        entry: np.void = self.entries[at] if self.row is None else self.row(at)
        return entry

    def encode(self) -> bytes:
        """Return the index as bytes; see `docs/format.md`."""
        table = b"".join(pack.encode() for pack in self.packs)
        head = _COUNT.pack(len(self.packs)) + table + _COUNT.pack(len(self.entries))
        sums = [pack.crc for pack in self.packs if pack.crc is not None]
        tail = struct.pack(f"<{len(sums)}I", *sums) if len(sums) == len(self.packs) else b""
        return head + self.entries.tobytes() + tail

    @classmethod
    def decode(cls, data: bytes) -> Index:
        """Read what `encode` returned.

        Raises:
            IntegrityError: the counts do not fit the length.
        """
        try:
            (count,) = _COUNT.unpack_from(data)
            table = _COUNT.size + count * _PACK.size
            packs = tuple(PackInfo.table(memoryview(data)[_COUNT.size : table]))
            (length,) = _COUNT.unpack_from(data, table)
            entries = np.frombuffer(data, ENTRY, length, table + _COUNT.size)
            tail = memoryview(data)[table + _COUNT.size + entries.nbytes :]
            if tail.nbytes == 4 * count:
                sums = struct.unpack(f"<{count}I", tail)
                packs = tuple(replace(pack, crc=crc) for pack, crc in zip(packs, sums, strict=True))
        except (struct.error, ValueError) as error:
            raise IntegrityError(f"an index is damaged: {error}") from error
        if len(entries) and int(entries["pack"].max()) >= count:
            raise IntegrityError(f"an index is damaged: it names a pack beyond its {count}")
        return cls.build(packs, entries)


def _prefixes(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(ids[:, :8]).view(">u8").ravel().astype(np.uint64)
