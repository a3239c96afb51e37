"""A sparse disk in memory that knows when each of its blocks was touched."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Final

from vmkeep.disks.device import Extent
from vmkeep.errors import SourceError
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self

_BLOCK: Final = 64 * KiB
_versions = itertools.count()


class MemoryDisk:
    """A sparse disk: the blocks that were written. Safe to use from several threads."""

    def __init__(self, size: int) -> None:
        """Make a disk of *size* bytes that reads as zeros."""
        self.size = size
        self.version = next(_versions)
        """Changes with each write; no two disks ever share one."""
        self._identity = next(_versions)
        self._blocks: dict[int, bytearray] = {}
        self._stamps: dict[int, int] = {}
        """By block that was ever touched: the version it got."""
        self._lock = threading.Lock()

    @property
    def fresh(self) -> bool:
        """Whether nothing was written yet."""
        return not self._blocks

    @property
    def allocated(self) -> int:
        """Bytes that hold data."""
        return len(self._blocks) * _BLOCK

    @property
    def mark(self) -> str:
        """The identity of the disk and of its content; `changed` takes it."""
        return f"{self._identity}:{self.version}:{self.size}"

    def changed(self, since: str) -> tuple[Extent, ...] | None:
        """Return the ranges that were touched since it had this mark; `None`: it never had."""
        identity, version, _ = since.split(":")
        if identity != str(self._identity):
            return None
        with self._lock:
            return tuple(self._merged(block for block, stamp in self._stamps.items() if stamp > int(version)))

    def copy(self) -> MemoryDisk:
        """Return a disk with the same content and mark, which later writes do not reach."""
        with self._lock:
            twin = MemoryDisk(self.size)
            twin.version, twin._identity = self.version, self._identity
            twin._blocks = {block: bytearray(data) for block, data in self._blocks.items()}
            twin._stamps = dict(self._stamps)
        return twin

    def extents(self) -> Iterator[Extent]:
        """Yield the ranges that were written, merged."""
        with self._lock:
            blocks = [*self._blocks]
        return self._merged(blocks)

    def _merged(self, blocks: Iterable[int]) -> Iterator[Extent]:
        start = end = -1
        for block in sorted(blocks):
            if block != end:
                if end > start:
                    yield self._extent(start, end)
                start = block
            end = block + 1
        if end > start:
            yield self._extent(start, end)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*; all of it, or raise."""
        self._check(offset, len(buffer))
        with self._lock:
            for block, start, length, at in _cut(offset, len(buffer)):
                data = self._blocks.get(block)
                buffer[at : at + length] = data[start : start + length] if data else bytes(length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of *data* at *offset*."""
        view = memoryview(data)
        self._check(offset, len(view))
        with self._lock:
            self.version = next(_versions)
            for block, start, length, at in _cut(offset, len(view)):
                self._stamps[block] = self.version
                place = self._blocks.setdefault(block, bytearray(_BLOCK))
                place[start : start + length] = view[at : at + length]

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros; whole blocks are forgotten."""
        self._check(offset, length)
        with self._lock:
            self.version = next(_versions)
            for block, start, count, _ in _cut(offset, length):
                self._stamps[block] = self.version
                if count == _BLOCK:
                    self._blocks.pop(block, None)
                elif block in self._blocks:
                    self._blocks[block][start : start + count] = bytes(count)

    def flush(self) -> None:
        """Do nothing: memory has no stable storage."""

    def close(self) -> None:
        """Do nothing: others may use it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _extent(self, start: int, end: int) -> Extent:
        return Extent(start * _BLOCK, min(end * _BLOCK, self.size) - start * _BLOCK)

    def _check(self, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= self.size:
            raise SourceError(f"bytes {offset} to {offset + length} are outside of the disk's {self.size}")


def _cut(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield block, start in it, length in it, and position in the whole, for each block touched."""
    done = 0
    while done < length:
        block, start = divmod(offset + done, _BLOCK)
        count = min(_BLOCK - start, length - done)
        yield block, start, count, done
        done += count
