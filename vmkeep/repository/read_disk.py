"""A saved disk that can be read anywhere, without restoring it."""

from __future__ import annotations

import threading
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

_CHUNKS_KEPT: Final = 16
_LEAVES_KEPT: Final = 64


class SavedDisk:
    """A `DiskSource` over the chunks of a saved disk; keeps those that were used last."""

    def __init__(self, ref: DiskRef, trees: Trees) -> None:
        self._ref = ref
        self._trees = trees
        self._get = lru_cache(_CHUNKS_KEPT)(trees.chunks.get)
        self._leaf = lru_cache(_LEAVES_KEPT)(lambda number: trees.disk_leaf(ref, number))
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""
        return self._ref.size

    def extents(self) -> Iterator[Extent]:
        """Yield the ranges that are no holes, in order, merged."""
        start = end = 0
        for offset, _ in self._trees.disk_chunks(self._ref):
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
            leaf, below = divmod(number, self._trees.fan)
            try:
                name = self._leaf(leaf)[below]
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
