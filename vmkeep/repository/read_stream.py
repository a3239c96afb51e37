"""Read a saved stream, all of it or a part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.errors import IntegrityError
from vmkeep.repository.parallel import READS, in_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.repository.manifest import StreamRef
    from vmkeep.repository.trees import Trees


def read_stream(ref: StreamRef, trees: Trees, start: int = 0, length: int | None = None) -> Iterator[bytes]:
    """Yield the bytes from *start* in blocks of any size; ahead of the reader by a few chunks.

    Raises:
        IntegrityError: a chunk is missing or damaged; what was yielded before is right.
    """
    end = ref.size if length is None else min(ref.size, start + length)

    def read(place: tuple[int, int, bytes]) -> bytes:
        at, size, chunk = place
        try:
            data = trees.chunks.get(chunk)
        except IntegrityError as error:
            raise IntegrityError(f"a saved stream cannot be read at {at}: {error}") from error
        if len(data) != size:
            raise IntegrityError(f"a saved stream is malformed at {at}: {len(data)} bytes instead of {size}")
        return bytes(data[max(0, start - at) : end - at])

    return in_order(read, _places(ref, trees, start, end), threads=READS)


def _places(ref: StreamRef, trees: Trees, start: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, length and id of the chunks that have bytes between *start* and *end*."""
    at = 0
    for leaf in ref.leaves:
        if at < end and at + leaf.length > start:
            for place in trees.stream_leaf(leaf, at):
                if place[0] < end and place[0] + place[1] > start:
                    yield place
        at += leaf.length
