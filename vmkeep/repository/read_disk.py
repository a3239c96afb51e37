"""A saved disk that can be read anywhere, without restoring it."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING

from vmkeep.disks.device import Extent
from vmkeep.errors import IntegrityError, SourceError
from vmkeep.repository.save_disk import HOLE
from vmkeep.repository.trees import disk_chunks, disk_leaf

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from vmkeep.repository.chunks import Chunks
    from vmkeep.repository.crypto import Buffer
    from vmkeep.repository.manifest import DiskRef

_CHUNKS_KEPT = 16
_LEAVES_KEPT = 64


class SavedDisk:
    """A `DiskSource` over the chunks of a saved disk; keeps those that were used last."""

    def __init__(self, ref: DiskRef, chunks: Chunks, *, fan: int) -> None:
        self._ref = ref
        self._fan = fan
        self._get = lru_cache(_CHUNKS_KEPT)(chunks.get)
        self._leaf = lru_cache(_LEAVES_KEPT)(lambda number: disk_leaf(ref, number, fan, chunks.get))
        self._chunks = chunks
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""
        return self._ref.size

    def extents(self) -> Iterator[Extent]:
        """Yield the ranges that are no holes, in order, merged."""
        start = end = 0
        for offset, _ in disk_chunks(self._ref, self._fan, self._chunks.get):
            if offset != end:
                if end > start:
                    yield Extent(start, end - start)
                start = offset
            end = min(offset + self._ref.chunk_size, self._ref.size)
        if end > start:
            yield Extent(start, end - start)

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

    def _chunk(self, number: int) -> Buffer | None:
        with self._lock:
            name = self._leaf(number // self._fan)[number % self._fan]
            try:
                return None if name == HOLE else self._get(name)
            except IntegrityError as error:
                at = number * self._ref.chunk_size
                raise IntegrityError(f"a saved disk cannot be read at {at}: {error}") from error

    def close(self) -> None:
        """Forget the chunks that were kept."""
        self._get.cache_clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
