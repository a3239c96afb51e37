"""A saved disk that can be read anywhere, without restoring it.

It reads ahead of whoever reads on, and remembers several places of that sort: a guest that boots reads files
at many places of its disk at once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.disks.device import Extent
from vmkeep.errors import IntegrityError, SourceError, TemporaryError, VmkeepError
from vmkeep.repository.chunk_cache import CAPACITY, ChunkCache
from vmkeep.repository.crypto import ID_SIZE
from vmkeep.repository.save_disk import HOLE
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from vmkeep.repository.crypto import Buffer
    from vmkeep.repository.manifest import DiskRef
    from vmkeep.repository.trees import Trees

_AT_ONCE: Final = 8 * MiB
"""What one reader has in memory; a longer read is done in several steps."""
_AHEAD: Final = 16 * MiB
"""The farthest that is read ahead; it begins with one chunk, and doubles with each that was needed."""
_PLACES: Final = 32
"""Places from which somebody reads on, that are remembered."""
_PAUSE_S: Final = (0.5, 8.0)
"""The first and the longest pause before a store that is away is asked again."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where somebody reads on."""

    window: int
    """How many chunks ahead of them are fetched."""
    reached: int
    """The last chunk that was fetched for them, or read by them."""


class SavedDisk:
    """A `DiskSource` over the chunks of a saved disk; every byte is checked before it is returned.

    Args:
        capacity: Bytes of chunks that are kept; while they are fetched there are up to
            `chunk_cache.AHEAD` times 16 MiB more, and 8 MiB for each reader.
        patience_s: How long a reader waits for a store that is away.
    """

    def __init__(
        self,
        ref: DiskRef,
        trees: Trees,
        *,
        capacity: int = CAPACITY,
        patience_s: float = 0.0,
    ) -> None:
        self._ref, self._trees = ref, trees
        self._cache = ChunkCache(trees.chunks, capacity=capacity)
        self._patience_s = patience_s
        self._last = (ref.size - 1) // ref.chunk_size
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._places: OrderedDict[int, _Place] = OrderedDict()
        """By the chunk that was read last."""
        self.failure: VmkeepError | None = None
        """The last error of a reader, for those who read through something that says no more than "error"."""

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
            if self._id(number) != HOLE:
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
            TemporaryError: the store is away, longer than our patience.
        """
        if offset < 0 or offset + len(buffer) > self._ref.size:
            raise SourceError(
                f"a saved disk of {self._ref.size} bytes was asked for {len(buffer)} at {offset}"
            )
        for start in range(0, len(buffer), _AT_ONCE):
            part = buffer[start : start + _AT_ONCE]
            try:
                self._read(offset + start, part)
            except VmkeepError as error:
                self.failure = error
                raise

    def close(self) -> None:
        """Forget the chunks that were kept; a second call does nothing."""
        self._closed.set()
        self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, offset: int, buffer: memoryview) -> None:
        size = self._ref.chunk_size
        first, last = offset // size, (offset + len(buffer) - 1) // size
        ids = [self._id(number) for number in range(first, last + 1)]
        self._read_ahead(first, last)
        chunks = self._get((name for name in ids if name != HOLE), first)
        done = 0
        for number, name in enumerate(ids, first):
            inside = offset + done - number * size
            length = min(size - inside, len(buffer) - done)
            buffer[done : done + length] = (
                bytes(length) if name == HOLE else memoryview(chunks[name])[inside : inside + length]
            )
            done += length

    def _id(self, number: int) -> bytes:
        """Return the id of a chunk of the disk; `HOLE` where it is zeros."""
        leaf, below = divmod(number, self._trees.fan)
        name = self._ref.leaves[leaf]
        if name == HOLE:
            return HOLE
        start, end = self._trees.disk_span(self._ref, leaf)
        data = self._get([name], number)[name]
        if len(data) != -(-(end - start) // self._ref.chunk_size) * ID_SIZE:
            raise IntegrityError(f"leaf {leaf} of a saved disk has {len(data)} bytes, which is wrong")
        return bytes(data[below * ID_SIZE : (below + 1) * ID_SIZE])

    def _get(self, names: Iterable[bytes], number: int) -> dict[bytes, Buffer]:
        """Return chunks; a store that is away is asked again until our patience is over."""
        wanted = list(names)
        deadline = time.monotonic() + self._patience_s
        pause = _PAUSE_S[0]
        while True:
            try:
                return self._cache.get(wanted)
            except IntegrityError as error:
                at = number * self._ref.chunk_size
                raise IntegrityError(f"a saved disk cannot be read at {at}: {error}") from error
            except TemporaryError:
                if time.monotonic() + pause > deadline or self._closed.wait(pause):
                    raise
                pause = min(2 * pause, _PAUSE_S[1])

    def _read_ahead(self, first: int, last: int) -> None:
        """Fetch what comes next, for somebody who reads on from where they were."""
        with self._lock:
            place = self._places.pop(first, None)
            before = self._places.pop(first - 1, None) if place is None else None
            moved = before is not None or last > first
            place = place or before or _Place(0, last)
            if moved:
                most = max(1, _AHEAD // self._ref.chunk_size)
                place = _Place(min(max(1, 2 * place.window), most), max(place.reached, last))
            start = place.reached + 1
            wanted = moved and start - last <= (place.window + 1) // 2
            if wanted:
                place = _Place(place.window, min(last + place.window, self._last))
            self._places[last] = place
            if len(self._places) > _PLACES:
                self._places.popitem(last=False)
        if wanted and place.reached >= start:
            self._cache.ahead(lambda: self._ids_ahead(start, place.reached))

    def _ids_ahead(self, first: int, last: int) -> Iterator[bytes]:
        for number in range(first, last + 1):
            name = self._id(number)
            if name != HOLE:
                yield name
