"""A saved disk that can be read anywhere, without restoring it: fast enough to boot a VM from.

read      [7)  [8)  [9) ...        in order: what follows is fetched ahead, several chunks at once
kept      the chunks that were used last, opened and checked
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from vmkeep.disks.device import Extent
from vmkeep.errors import IntegrityError, SourceError
from vmkeep.repository.save_disk import HOLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from vmkeep.repository.crypto import Buffer
    from vmkeep.repository.manifest import DiskRef
    from vmkeep.repository.trees import Trees

    _Chunk = Future[Buffer | None]

_CHUNKS_KEPT: Final = 64
"""With chunks of 1 MiB the most of the memory that a disk takes."""
_LEAVES_KEPT: Final = 64
_AHEAD: Final = 8
"""Chunks that are fetched before they are asked for, once a disk is read in order."""
_FETCHERS: Final = 4


class SavedDisk:
    """A `DiskSource` over the chunks of a saved disk, also in parts. Safe to use from several threads."""

    def __init__(self, ref: DiskRef, trees: Trees) -> None:
        self._ref = ref
        self._trees = trees
        self._read_leaf = lru_cache(_LEAVES_KEPT)(lambda number: trees.disk_leaf(ref, number))
        self._leaf_lock = threading.Lock()
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, _Chunk] = OrderedDict()
        self._last = -1
        self._pool: ThreadPoolExecutor | None = None

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""
        return self._ref.size

    def extents(self) -> Iterator[Extent]:
        """Yield the ranges that are no holes, in order, merged."""
        return self.extents_within(0, self.size)

    def extents_within(self, start: int, length: int) -> Iterator[Extent]:
        """Yield the parts of a range that are no holes, in order, merged; reads only the leaves it lies in.

        Raises:
            IntegrityError: a leaf is missing or damaged.
        """
        size, end = self._ref.chunk_size, min(start + length, self.size)
        begun = None
        for number in range(start // size, -(-end // size)):
            leaf, below = divmod(number, self._trees.fan)
            if self._name(leaf, below) != HOLE:
                begun = max(start, number * size) if begun is None else begun
            elif begun is not None:
                yield Extent(begun, number * size - begun)
                begun = None
        if begun is not None:
            yield Extent(begun, end - begun)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*.

        Raises:
            SourceError: the range is not inside the disk.
            IntegrityError: a chunk is missing or damaged.
        """
        if offset < 0 or offset + len(buffer) > self._ref.size:
            raise SourceError(
                f"a saved disk of {self._ref.size} bytes was asked for {len(buffer)} at {offset}"
            )
        size, done = self._ref.chunk_size, 0
        while done < len(buffer):
            number, inside = divmod(offset + done, size)
            length = min(size - inside, len(buffer) - done)
            data = self._chunk(number)
            buffer[done : done + length] = (
                bytes(length) if data is None else memoryview(data)[inside : inside + length]
            )
            done += length

    def close(self) -> None:
        """Forget the chunks that were kept, and fetch none any more; a second call does nothing."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._kept.clear()
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _name(self, leaf: int, below: int) -> bytes:
        """Return the id of a chunk; several threads that want one leaf fetch it once."""
        if self._ref.leaves[leaf] == HOLE:
            return HOLE
        with self._leaf_lock:
            return self._read_leaf(leaf)[below]

    def _chunk(self, number: int) -> Buffer | None:
        """Return the bytes of a chunk; `None`: all zeros."""
        with self._lock:
            chunk, ours = self._place(number)
            in_order, self._last = number == self._last + 1, number
            if in_order:
                self._fetch_ahead(number + 1)
        if ours:
            self._fetch(number, chunk)
        return chunk.result()

    def _place(self, number: int) -> tuple[_Chunk, bool]:
        """Return where a chunk's bytes come, and whether it is on the caller to fetch them."""
        chunk = self._kept.get(number)
        if chunk is not None and not (chunk.done() and chunk.exception() is not None):
            self._kept.move_to_end(number)
            return chunk, False
        chunk = self._kept[number] = Future()
        self._kept.move_to_end(number)
        while len(self._kept) > _CHUNKS_KEPT:
            self._kept.popitem(last=False)
        return chunk, True

    def _fetch_ahead(self, start: int) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="ahead")
        for number in range(start, min(start + _AHEAD, -(-self.size // self._ref.chunk_size))):
            chunk, ours = self._place(number)
            if ours:
                self._pool.submit(self._fetch, number, chunk)

    def _fetch(self, number: int, chunk: _Chunk) -> None:
        leaf, below = divmod(number, self._trees.fan)
        try:
            name = self._name(leaf, below)
            chunk.set_result(None if name == HOLE else self._trees.chunks.get(name))
        except IntegrityError as error:
            at = number * self._ref.chunk_size
            found = IntegrityError(f"a saved disk cannot be read at {at}: {error}")
            found.__cause__ = error
            chunk.set_exception(found)
        except BaseException as error:  # noqa: BLE001  (who waits for the chunk is told)
            chunk.set_exception(error)
