"""Save a disk as chunks of one size below a two-level tree.

    DiskRef        leaf 0 | leaf 1 | hole | ...        in the recovery point
    leaf (chunk)   id 0 | id 1 | hole | ... 512        16 KiB, stored like any other chunk
    chunk          1 MiB of the disk

With the parent's tree and the ranges that changed since, a leaf that no change touches is inherited
as it is, and of the others only the ids that changed are replaced.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Final

from vmkeep.disks.device import Extent
from vmkeep.repository import disk_plan
from vmkeep.repository.crypto import ID_SIZE
from vmkeep.repository.manifest import DiskRef, Stats
from vmkeep.repository.parallel import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmkeep.disks.device import DiskSource
    from vmkeep.repository.disk_plan import ChunkRead
    from vmkeep.repository.format import Format
    from vmkeep.repository.packer import Packer

HOLE: Final = bytes(ID_SIZE)
"""The id of a chunk, or of a leaf, that is all zeros."""
_BATCH: Final = 16
"""Chunks that a thread takes at once."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """The tree of a parent, from which a disk takes what did not change."""

    ref: DiskRef
    changed: Iterable[Extent]
    """All ranges that may differ from it."""
    stored: Callable[[bytes], bool]
    """Whether a leaf is stored, with all that is below it."""
    read: Callable[[bytes], bytes]
    """The ids below a leaf."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Chunks below one leaf that were saved."""

    leaf: int
    ids: list[tuple[int, bytes]]
    """Number below the leaf, and id."""
    stats: Stats


def save_disk(
    source: DiskSource,
    packer: Packer,
    format_: Format,
    parent: Inherited | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[DiskRef, Stats]:
    """Store a disk and return where it is.

    Args:
        parent: what to inherit; by default nothing, and all extents are read.
        progress: told how many bytes were read since the last call.
    """
    begun = time.monotonic()
    saver = _DiskSaver(source, packer, format_)
    tree = _Tree(source.size, format_, parent)
    if parent is None:
        reads = disk_plan.allocated(source.extents(), format_.disk_chunk)
    else:
        ranges = [*parent.changed, *tree.unknown]
        reads = disk_plan.changed(source.extents(), ranges, format_.disk_chunk)
    stats = Stats()
    for leaf, batches in groupby(in_order(saver.save, saver.batches(reads)), lambda batch: batch.leaf):
        ids = tree.below(leaf)
        for batch in batches:
            for number, chunk in batch.ids:
                ids[number * ID_SIZE : (number + 1) * ID_SIZE] = chunk
            stats += batch.stats
            if progress is not None:
                progress(batch.stats.read)
        if any(ids):
            stored = packer.put(ids)
            tree.leaves[leaf] = stored.id
            stats += Stats(stored=stored.stored)
        else:
            tree.leaves[leaf] = HOLE
    ref = DiskRef(source.size, format_.disk_chunk, tuple(tree.leaves))
    return ref, stats + Stats(seconds=time.monotonic() - begun)


class _Tree:
    """The leaves of a disk: at first those of its parent, or holes.

    `unknown` are the ranges for which the parent has nothing that can be used.
    """

    def __init__(self, size: int, format_: Format, parent: Inherited | None) -> None:
        self._size, self._chunk, self._fan = size, format_.disk_chunk, format_.disk_leaf
        self._span = self._chunk * self._fan
        self._parent = parent
        self.leaves = [HOLE] * -(-size // self._span)
        self.unknown: list[Extent] = []
        if parent is None or parent.ref.chunk_size != self._chunk:
            self._parent = None
            self.unknown.append(Extent(0, size))
            return
        if parent.ref.size != size:  # all behind the last whole chunk that both have
            start = min(parent.ref.size, size) // self._chunk * self._chunk
            self.unknown.append(Extent(start, size - start))
        for leaf, name in enumerate(parent.ref.leaves[: len(self.leaves)]):
            if name == HOLE or parent.stored(name):
                self.leaves[leaf] = name
            else:
                start = leaf * self._span
                self.unknown.append(Extent(start, min(self._span, size - start)))

    def below(self, leaf: int) -> bytearray:
        """Return the ids below a leaf as they are so far."""
        length = min(self._fan, -(-(self._size - leaf * self._span) // self._chunk)) * ID_SIZE
        if self._parent is None or self.leaves[leaf] == HOLE:
            return bytearray(length)
        return bytearray(self._parent.read(self.leaves[leaf])[:length].ljust(length, b"\0"))


class _DiskSaver:
    """Reads and stores chunks in several threads, each with its own buffer."""

    def __init__(self, source: DiskSource, packer: Packer, format_: Format) -> None:
        self._source = source
        self._packer = packer
        self._size = format_.disk_chunk
        self._fan = format_.disk_leaf
        self._zeros = bytes(self._size)
        self._local = threading.local()

    def batches(self, reads: Iterable[ChunkRead]) -> Iterator[list[ChunkRead]]:
        """Yield *reads* in lists, each below one leaf."""
        for _, below in groupby(reads, lambda each: each.number // self._fan):
            while batch := list(islice(below, _BATCH)):
                yield batch

    def save(self, reads: list[ChunkRead]) -> _Batch:
        """Read and store the chunks of one batch."""
        leaf = reads[0].number // self._fan
        ids: list[tuple[int, bytes]] = []
        read = new = taken = 0
        for each in reads:
            chunk = HOLE
            length = sum(piece.length for piece in each.pieces)
            buffer = self._read(each)
            if buffer is not None:
                stored = self._packer.put(buffer)
                chunk = stored.id
                new += length if stored.stored else 0
                taken += stored.stored
            read += length
            ids.append((each.number - leaf * self._fan, chunk))
        return _Batch(leaf, ids, Stats(read, new, taken))

    def _read(self, each: ChunkRead) -> bytearray | memoryview | None:
        """Return the bytes of a chunk, valid until the next call of this thread; `None`: all zeros."""
        start = each.number * self._size
        length = min(self._size, self._source.size - start)
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = bytearray(self._size)
        if sum(piece.length for piece in each.pieces) < length:
            buffer[:] = self._zeros
        with memoryview(buffer) as view:
            for piece in each.pieces:
                at = piece.start - start
                self._source.read_into(piece.start, view[at : at + piece.length])
        if length == self._size:
            return None if buffer == self._zeros else buffer
        part = memoryview(buffer)[:length]
        return None if part == self._zeros[:length] else part
