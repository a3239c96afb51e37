"""A tiny chunk store in memory, for tests of components without a repository."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from vmkeep.repository.manifest import DiskRef, Leaf, Stats, StreamRef
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmkeep.disks.device import DiskSource, DiskTarget, Extent

_HOLE: Final = bytes(32)


class MemoryChunks:
    """Keeps chunks by their hash; both a writer and a reader for components."""

    def __init__(self, chunk_size: int = MiB) -> None:
        self._chunk_size = chunk_size
        self._chunks: dict[bytes, bytes] = {}

    def save_disk(
        self,
        source: DiskSource,
        *,
        parent: DiskRef | None = None,
        changed: Iterable[Extent] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[DiskRef, Stats]:
        """Keep the chunks that hold data."""
        if parent is not None and changed is not None and not tuple(changed):
            return parent, Stats()
        size, step = source.size, self._chunk_size
        ids = [_HOLE] * -(-size // step)
        read = 0
        for index in sorted({i for e in source.extents() for i in range(e.start // step, -(-e.end // step))}):
            buffer = bytearray(min(step, size - index * step))
            source.read_into(index * step, memoryview(buffer))
            ids[index] = self._keep(bytes(buffer)) if any(buffer) else _HOLE
            read += len(buffer)
            if progress:
                progress(len(buffer))
        return DiskRef(size, step, tuple(ids)), Stats(read=read)

    def deviation(self, source: DiskSource, parent: DiskRef, changed: Iterable[Extent]) -> int | None:
        """Compare all that is said to be as it was."""
        step = parent.chunk_size
        touched = {i for one in changed for i in range(one.start // step, -(-one.end // step))}
        for index, name in enumerate(parent.leaves):
            buffer = bytearray(min(step, parent.size - index * step))
            source.read_into(index * step, memoryview(buffer))
            held = hashlib.sha256(buffer).digest() if any(buffer) else _HOLE
            if index not in touched and held != name:
                return index * step
        return None

    def restore_disk(
        self,
        ref: DiskRef,
        target: DiskTarget,
        *,
        present: DiskSource | None = None,  # noqa: ARG002  (all is at hand here)
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Write the chunks; holes only where the target is not fresh."""
        for index, name in enumerate(ref.leaves):
            offset = index * ref.chunk_size
            length = min(ref.chunk_size, ref.size - offset)
            if name != _HOLE:
                target.write(offset, self._chunks[name])
            elif not target.fresh:
                target.zero(offset, length)
            if progress:
                progress(length)
        return 0

    def save_stream(
        self,
        blocks: Iterable[bytes | bytearray | memoryview],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[StreamRef, Stats]:
        """Keep each block as a chunk."""
        leaves = []
        for block in blocks:
            data = bytes(block)
            leaves.append(Leaf(self._keep(data), len(data)))
            if progress:
                progress(len(data))
        size = sum(leaf.length for leaf in leaves)
        return StreamRef(size, tuple(leaves)), Stats(read=size)

    def read_stream(self, ref: StreamRef, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the parts of the chunks that lie in the range."""
        end = ref.size if length is None else start + length
        offset = 0
        for leaf in ref.leaves:
            part = self._chunks[leaf.id][max(0, start - offset) : max(0, end - offset)]
            if part:
                yield part
            offset += leaf.length

    def _keep(self, data: bytes) -> bytes:
        name = hashlib.sha256(data).digest()
        self._chunks[name] = data
        return name
