"""Save a stream of bytes as chunks below a tree.

The leaves are cut by content too, after a chunk whose id ends in a zero in seven bits: an insertion changes
one leaf and not all that follow.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final

from vmkeep.repository.crypto import ID_SIZE
from vmkeep.repository.cutter import cut
from vmkeep.repository.manifest import Leaf, Stats, StreamRef
from vmkeep.repository.parallel import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmkeep.repository.crypto import Buffer
    from vmkeep.repository.format import Format
    from vmkeep.repository.packer import Packer, Stored

ENTRY: Final = struct.Struct(f"<{ID_SIZE}sI")
"""Id and length of a chunk."""
_END: Final = 0x7F
_MOST: Final = 1024
"""Chunks below a leaf."""


def save_stream(
    blocks: Iterable[Buffer],
    packer: Packer,
    format_: Format,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[StreamRef, Stats]:
    """Store a stream and return where it is.

    Args:
        seed: the key of the cut points.
        progress: told how many bytes were dealt with since the last call.
    """
    begun = time.monotonic()
    leaves: list[Leaf] = []
    below: list[tuple[bytes, int]] = []
    read = new = taken = 0

    def end_leaf() -> None:
        nonlocal taken
        stored = packer.put(b"".join(ENTRY.pack(*each) for each in below))
        leaves.append(Leaf(stored.id, sum(length for _, length in below)))
        taken += stored.stored
        below.clear()

    for stored, length in _stored(cut(blocks, format_, seed), packer):
        below.append((stored.id, length))
        read += length
        new += length if stored.stored else 0
        taken += stored.stored
        if not stored.id[-1] & _END or len(below) == _MOST:
            end_leaf()
        if progress is not None:
            progress(length)
    if below:
        end_leaf()
    return StreamRef(read, tuple(leaves)), Stats(read, new, taken, time.monotonic() - begun)


def _stored(chunks: Iterator[bytes], packer: Packer) -> Iterator[tuple[Stored, int]]:
    return in_order(lambda chunk: (packer.put(chunk), len(chunk)), chunks)
