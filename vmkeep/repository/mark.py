"""Which chunks recovery points need: found by walking their trees, one batch of leaves at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np

from vmkeep.errors import IntegrityError
from vmkeep.repository.crypto import ID_SIZE
from vmkeep.repository.save_disk import HOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from vmkeep.repository.chunks import Chunks, Fetched
    from vmkeep.repository.crypto import Buffer
    from vmkeep.repository.index import Index
    from vmkeep.repository.manifest import Point

_BATCH: Final = 256
"""Leaves that are read at once: a few MiB."""
_STREAM_ENTRY: Final = np.dtype([("id", "u1", (ID_SIZE,)), ("length", "<u4")])
"""An entry in the leaf of a stream, as `save_stream` writes it."""


@dataclass(frozen=True, slots=True)
class Live:
    """The chunks that some recovery points need."""

    index: Index
    entries: NDArray[np.bool_]
    """Which entries of the index these are, with every copy of a chunk."""

    def among(self, index: Index) -> Live:
        """Return the same chunks in another index.

        Raises:
            IntegrityError: it does not know all of them.
        """
        if index is self.index:
            return self
        marks = np.zeros(len(index), bool)
        if not index.mark(np.ascontiguousarray(self.index.entries["id"][self.entries]), marks):
            raise _incomplete("a recovery point", "no index says any more where all of its chunks lie")
        return Live(index, marks)


def live_chunks(points: Iterable[Point], chunks: Chunks, index: Index) -> Live:
    """Return the chunks that *points* need.

    Each leaf is read once, however many points share it; memory grows with the number of leaves only.

    Raises:
        IntegrityError: something of a point is missing or damaged: to delete now may make it worse.
        TemporaryError: the store is away.
    """
    marking = _Marking(chunks, index)
    for point in points:
        marking.add(point)
    return Live(index, marking.marks)


class _Marking:
    def __init__(self, chunks: Chunks, index: Index) -> None:
        self.marks = np.zeros(len(index), bool)
        self._chunks, self._index = chunks, index
        self._seen: set[bytes] = set()

    def add(self, point: Point) -> None:
        """Mark what *point* needs."""
        what = f"recovery point {point.session} of {point.vm}"
        for component in point.components.values():
            for disk in component.disks.values():
                self._walk(what, (leaf for leaf in disk.leaves if leaf != HOLE), _disk_ids)
            for stream in component.streams.values():
                self._walk(what, (leaf.id for leaf in stream.leaves), _stream_ids)

    def _walk(
        self, what: str, leaves: Iterator[bytes], ids_in: Callable[[Buffer], NDArray[np.uint8]]
    ) -> None:
        def use(leaf: Fetched) -> None:
            if leaf.damage is not None:
                raise _incomplete(what, str(leaf.damage)) from leaf.damage
            self._mark(what, ids_in(leaf.data))

        new = (leaf for leaf in leaves if leaf not in self._seen)
        while batch := set(islice(new, _BATCH)):
            self._mark(what, _ids(b"".join(batch)))
            self._chunks.fetch(batch, use)
            self._seen |= batch

    def _mark(self, what: str, ids: NDArray[np.uint8]) -> None:
        if not self._index.mark(ids, self.marks):
            raise _incomplete(what, "no index says where all of its chunks lie")


def _ids(data: Buffer) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(-1, ID_SIZE)


def _disk_ids(leaf: Buffer) -> NDArray[np.uint8]:
    ids = _ids(leaf)
    return ids[ids.any(axis=1)]  # without holes


def _stream_ids(leaf: Buffer) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.frombuffer(leaf, _STREAM_ENTRY)["id"])


def _incomplete(what: str, problem: str) -> IntegrityError:
    return IntegrityError(
        f"{what} cannot be read whole: {problem}. Nothing was collected; run 'vmkeep verify' to learn more"
    )
