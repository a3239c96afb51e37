"""Which parts of a disk are read for each of its chunks.

disk      |----chunk 0----|----chunk 1----|----chunk 2----|
extents        [=======)       [=)   [=======)
read           [=======)       [=========)[==)             (small gaps are read along)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.disks.device import Extent
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GAP: Final = 64 * KiB
"""Reading so many zeros costs less than another call."""


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """What to read for one chunk."""

    number: int
    pieces: tuple[Extent, ...]
    """In order, inside the chunk, as offsets of the disk; all else of the chunk is zeros."""


def allocated(extents: Iterable[Extent], size: int) -> Iterator[ChunkRead]:
    """Yield the chunks of *size* bytes that may hold data, in order."""
    number, pieces = -1, list[Extent]()
    for extent in extents:
        start = extent.start
        while start < extent.end:
            at = start // size
            piece = Extent(start, min(extent.end, (at + 1) * size) - start)
            if at != number:
                if pieces:
                    yield ChunkRead(number, tuple(pieces))
                number, pieces = at, []
            if pieces and piece.start - pieces[-1].end < _GAP:
                piece = Extent(pieces[-1].start, piece.end - pieces.pop().start)
            pieces.append(piece)
            start = (at + 1) * size
    if pieces:
        yield ChunkRead(number, tuple(pieces))


def changed(reads: Iterable[ChunkRead], ranges: Iterable[Extent], size: int) -> Iterator[ChunkRead]:
    """Yield the chunks that *ranges* touch, in order; those that hold no data have no pieces."""
    holding = iter(reads)
    ahead = next(holding, None)
    for number in _touched(ranges, size):
        while ahead is not None and ahead.number < number:
            ahead = next(holding, None)
        if ahead is not None and ahead.number == number:
            yield ahead
        else:
            yield ChunkRead(number, ())


def _touched(ranges: Iterable[Extent], size: int) -> Iterator[int]:
    done = 0
    for each in sorted(ranges):
        if each.length:
            yield from range(max(done, each.start // size), -(-each.end // size))
            done = max(done, -(-each.end // size))
