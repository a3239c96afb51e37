"""The leaves of saved disks and streams: which chunk holds which bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.errors import IntegrityError
from vmkeep.repository.crypto import ID_SIZE
from vmkeep.repository.save_disk import HOLE
from vmkeep.repository.save_stream import ENTRY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.repository.chunks import Chunks
    from vmkeep.repository.crypto import Buffer
    from vmkeep.repository.manifest import DiskRef, Leaf


class Trees:
    """Reads leaves.

    Args:
        fan: the chunks below every leaf of a disk but the last.
    """

    def __init__(self, chunks: Chunks, fan: int) -> None:
        self.chunks = chunks
        self.fan = fan

    def disk_leaf(self, ref: DiskRef, number: int) -> list[bytes]:
        """Return the ids of the chunks below a leaf of a disk; `HOLE` for those that are zeros.

        Raises:
            IntegrityError: the leaf is missing or damaged.
        """
        start, end = self.disk_span(ref, number)
        count = -(-(end - start) // ref.chunk_size)
        if ref.leaves[number] == HOLE:
            return [HOLE] * count
        data = bytes(self._get(ref.leaves[number], start, end))
        if len(data) != count * ID_SIZE:
            raise IntegrityError(
                f"leaf {number} of a disk has {len(data)} bytes instead of {count * ID_SIZE}"
            )
        return [data[at : at + ID_SIZE] for at in range(0, len(data), ID_SIZE)]

    def disk_span(self, ref: DiskRef, number: int) -> tuple[int, int]:
        """Return where the part of a disk below a leaf begins and ends."""
        span = self.fan * ref.chunk_size
        return number * span, min((number + 1) * span, ref.size)

    def disk_chunks(self, ref: DiskRef) -> Iterator[tuple[int, bytes]]:
        """Yield offset and id of every chunk of a disk that is no hole, in order.

        Raises:
            IntegrityError: a leaf is missing or damaged.
        """
        for number, leaf in enumerate(ref.leaves):
            if leaf != HOLE:
                for below, chunk in enumerate(self.disk_leaf(ref, number)):
                    if chunk != HOLE:
                        yield (number * self.fan + below) * ref.chunk_size, chunk

    def stream_leaf(self, leaf: Leaf, start: int) -> list[tuple[int, int, bytes]]:
        """Return offset in the stream, length and id of the chunks below a leaf that begins at *start*.

        Raises:
            IntegrityError: the leaf is missing or damaged.
        """
        data = self._get(leaf.id, start, start + leaf.length)
        if len(data) % ENTRY.size:
            raise IntegrityError(f"a leaf of a stream has {len(data)} bytes, not a multiple of {ENTRY.size}")
        found = []
        for chunk, length in ENTRY.iter_unpack(data):
            found.append((start, length, chunk))
            start += length
        return found

    def _get(self, leaf: bytes, start: int, end: int) -> Buffer:
        try:
            return self.chunks.get(leaf)
        except IntegrityError as error:
            raise IntegrityError(f"what lies from {start} to {end} cannot be found: {error}") from error


def leaf_chunks(data: Buffer) -> set[bytes]:
    """Return the ids in the bytes of a disk's leaf, without holes."""
    return {bytes(data[at : at + ID_SIZE]) for at in range(0, len(data), ID_SIZE)} - {HOLE}
