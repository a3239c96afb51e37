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


def changed(extents: Iterable[Extent], ranges: Iterable[Extent], size: int) -> Iterator[ChunkRead]:
    """Yield the chunks of *size* bytes that *ranges* touch, in order; those that hold no data have no pieces.

    The cost grows with the chunks that are touched and the number of extents, not with the disk.
    """
    spans = list(touched(ranges, size))
    holding = allocated(_within(extents, spans, size), size)
    ahead = next(holding, None)
    for span in spans:
        for number in span:
            if ahead is not None and ahead.number == number:
                yield ahead
                ahead = next(holding, None)
            else:
                yield ChunkRead(number, ())


def touched(ranges: Iterable[Extent], size: int) -> Iterator[range]:
    """Yield the numbers of the chunks that *ranges* touch: in order, and each once."""
    done = 0
    for each in sorted(ranges):
        end = -(-each.end // size)
        if each.length and end > done:
            yield range(max(done, each.start // size), end)
            done = end


def _within(extents: Iterable[Extent], spans: Iterable[range], size: int) -> Iterator[Extent]:
    """Yield the parts of *extents* that lie in the chunks of *spans*; both are in order."""
    left = iter(spans)
    span = next(left, None)
    for extent in extents:
        while span is not None and span.stop * size <= extent.start:
            span = next(left, None)
        while span is not None and span.start * size < extent.end:
            start = max(extent.start, span.start * size)
            yield Extent(start, min(extent.end, span.stop * size) - start)
            if span.stop * size > extent.end:
                break  # the next extent may lie in it, too
            span = next(left, None)
