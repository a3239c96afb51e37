"""The leaves of saved disks and streams: which chunk holds which bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.errors import IntegrityError
from vmkeep.repository.crypto import ID_SIZE
from vmkeep.repository.save_disk import HOLE
from vmkeep.repository.save_stream import ENTRY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmkeep.repository.crypto import Buffer
    from vmkeep.repository.manifest import DiskRef, Leaf


def disk_leaf(ref: DiskRef, number: int, fan: int, get: Callable[[bytes], Buffer]) -> list[bytes]:
    """Return the ids of the chunks below a leaf; `HOLE` for those that are zeros.

    Args:
        fan: the chunks below every leaf but the last.
        get: reads a chunk.

    Raises:
        IntegrityError: the leaf is missing or damaged.
    """
    count = min(fan, -(-ref.size // ref.chunk_size) - number * fan)
    if ref.leaves[number] == HOLE:
        return [HOLE] * count
    start = number * fan * ref.chunk_size
    data = bytes(_get(ref.leaves[number], get, start, min(ref.size, start + fan * ref.chunk_size)))
    if len(data) != count * ID_SIZE:
        raise IntegrityError(f"leaf {number} of a disk has {len(data)} bytes instead of {count * ID_SIZE}")
    return [data[at : at + ID_SIZE] for at in range(0, len(data), ID_SIZE)]


def disk_chunks(ref: DiskRef, fan: int, get: Callable[[bytes], Buffer]) -> Iterator[tuple[int, bytes]]:
    """Yield offset and id of every chunk of a disk that is no hole, in order.

    Raises:
        IntegrityError: a leaf is missing or damaged.
    """
    for number, leaf in enumerate(ref.leaves):
        if leaf != HOLE:
            for below, chunk in enumerate(disk_leaf(ref, number, fan, get)):
                if chunk != HOLE:
                    yield (number * fan + below) * ref.chunk_size, chunk


def leaf_chunks(data: Buffer) -> set[bytes]:
    """Return the ids in the bytes of a disk's leaf, without holes."""
    return {bytes(data[at : at + ID_SIZE]) for at in range(0, len(data), ID_SIZE)} - {HOLE}


def stream_leaf(leaf: Leaf, start: int, get: Callable[[bytes], Buffer]) -> list[tuple[int, int, bytes]]:
    """Return offset in the stream, length and id of the chunks below a leaf that begins at *start*.

    Raises:
        IntegrityError: the leaf is missing or damaged.
    """
    data = _get(leaf.id, get, start, start + leaf.length)
    if len(data) % ENTRY.size:
        raise IntegrityError(f"a leaf of a stream has {len(data)} bytes, not a multiple of {ENTRY.size}")
    found = []
    for chunk, length in ENTRY.iter_unpack(data):
        found.append((start, length, chunk))
        start += length
    return found


def _get(leaf: bytes, get: Callable[[bytes], Buffer], start: int, end: int) -> Buffer:
    try:
        return get(leaf)
    except IntegrityError as error:
        raise IntegrityError(f"what lies from {start} to {end} cannot be found: {error}") from error
