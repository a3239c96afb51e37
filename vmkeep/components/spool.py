"""Streams that wait in files of this host: for trees that go from one file system into another."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from vmkeep.errors import SourceError
from vmkeep.repository.manifest import Leaf, Stats, StreamRef
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_BLOCK: Final = MiB


class Spool:
    """Writes and reads streams without a repository; takes as much space as they have bytes."""

    def __init__(self, folder: Path) -> None:
        """Keep the streams in *folder*, which is the caller's to remove."""
        self._folder = folder
        self._numbers = itertools.count()

    def save_stream(
        self,
        blocks: Iterable[bytes | bytearray | memoryview],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[StreamRef, Stats]:
        """Write a stream into a file of its own.

        Raises:
            SourceError: the folder is full.
        """
        name = next(self._numbers).to_bytes(32, "big")
        size = 0
        try:
            with self._path(name).open("xb", buffering=0) as file:
                for block in blocks:
                    left = memoryview(block)
                    size += len(left)
                    while left:
                        left = left[file.write(left) :]
                    if progress is not None:
                        progress(len(block))
        except OSError as error:
            raise SourceError(
                f"{self._folder}: {error.strerror}: files wait there on their way; TMPDIR names another place"
            ) from error
        return StreamRef(size, (Leaf(name, size),)), Stats(read=size)

    def read_stream(self, ref: StreamRef, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a stream that was written here, from *start*."""
        left = ref.size - start if length is None else length
        with self._path(ref.leaves[0].id).open("rb", buffering=0) as file:
            file.seek(start)
            while left > 0 and (block := file.read(min(_BLOCK, left))):
                left -= len(block)
                yield block

    def _path(self, name: bytes) -> Path:
        return self._folder / f"stream-{int.from_bytes(name, 'big')}"
