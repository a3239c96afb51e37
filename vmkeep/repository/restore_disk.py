"""Write a saved disk to a target: in the order of the packs, and nothing for holes of a fresh target.

What a present disk holds is taken from there. A chunk's id is a keyed hash of all its bytes, so that what
passes is what was saved; only the rest is fetched.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from typing import TYPE_CHECKING

from vmkeep.errors import InputError, IntegrityError, SourceError
from vmkeep.repository.parallel import READS, for_each, in_order
from vmkeep.repository.save_disk import HOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vmkeep.disks.device import DiskSource, DiskTarget
    from vmkeep.repository.chunks import Fetched
    from vmkeep.repository.index import Location
    from vmkeep.repository.manifest import DiskRef
    from vmkeep.repository.trees import Trees


def restore_disk(  # noqa: PLR0913  (three of them are named options)
    ref: DiskRef,
    target: DiskTarget,
    trees: Trees,
    *,
    what: str = "disk",
    present: DiskSource | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write all of the disk, and return when it is on stable storage.

    Args:
        what: how messages call the disk.
        present: a disk that may hold some of it at the same offsets; what it holds is not fetched.
        progress: told how many bytes of the disk were dealt with since the last call, by any thread.

    Returns:
        How many bytes were taken from *present*.

    Raises:
        InputError: the target is smaller than the disk.
        IntegrityError: stored data is missing or damaged; the target is incomplete then.
    """
    if target.size < ref.size:
        raise InputError(f"the target of {what} has {target.size} bytes; {ref.size} are needed")
    if present is not None and present.size != ref.size:
        present = None
    work = _Restore(ref, target, trees, what, progress or (lambda _size: None))
    work.present = present
    work.run()
    return work.reused


class _Restore:
    def __init__(
        self, ref: DiskRef, target: DiskTarget, trees: Trees, what: str, progress: Callable[[int], None]
    ) -> None:
        self._ref, self._target, self._trees = ref, target, trees
        self._what, self._progress = what, progress
        self.present: DiskSource | None = None
        self.reused = 0
        self._fresh = target.fresh  # asked once: a target that was written to may deny it

    def run(self) -> None:
        for_each(self._write, self._runs(), threads=READS)
        beyond = self._target.size - self._ref.size
        if beyond and not self._fresh:
            self._target.zero(self._ref.size, beyond)
        self._target.flush()

    def _runs(self) -> Iterator[tuple[list[Location], Mapping[bytes, Sequence[int]]]]:
        """Yield what is read at once, and where each chunk of it is written."""
        for number in range(len(self._ref.leaves)):
            start, _ = self._trees.disk_span(self._ref, number)
            ids = self._leaf(number)
            self._skip_holes(start, ids)
            places = defaultdict[bytes, list[int]](list)
            wanted = [(start + i * self._ref.chunk_size, one) for i, one in enumerate(ids) if one != HOLE]
            for offset, chunk in self._lacking(wanted):
                places[chunk].append(offset)
            runs, missing = self._trees.chunks.runs(places)
            for each in missing:
                self._use(each, places)
            for run in runs:
                yield run, places

    def _lacking(self, wanted: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """Write what the present disk holds, and yield the rest."""
        present = self.present
        if present is None:
            yield from wanted
            return
        for one, size in zip(wanted, in_order(lambda one: self._take(present, *one), wanted), strict=True):
            self.reused += size
            if not size:
                yield one

    def _take(self, present: DiskSource, offset: int, chunk: bytes) -> int:
        """Write a chunk from the present disk; return its size, or 0 if it holds something else there."""
        data = bytearray(min(self._ref.chunk_size, self._ref.size - offset))
        try:
            present.read_into(offset, memoryview(data))
        except SourceError:
            return 0
        if not self._trees.chunks.is_id(chunk, data):
            return 0
        self._target.write(offset, data)
        self._progress(len(data))
        return len(data)

    def _leaf(self, number: int) -> list[bytes]:
        try:
            return self._trees.disk_leaf(self._ref, number)
        except IntegrityError as error:
            raise self._broken(str(error)) from error

    def _write(self, work: tuple[list[Location], Mapping[bytes, Sequence[int]]]) -> None:
        run, places = work
        for fetched in self._trees.chunks.each_of(run):
            self._use(fetched, places)

    def _use(self, fetched: Fetched, places: Mapping[bytes, Sequence[int]]) -> None:
        if fetched.damage is not None:
            raise self._broken(f"at {places[fetched.id][0]}: {fetched.damage}") from fetched.damage
        for offset in places[fetched.id]:
            self._target.write(offset, fetched.data)
            self._progress(len(fetched.data))

    def _skip_holes(self, at: int, ids: Sequence[bytes]) -> None:
        for chunk, equal in groupby(ids, lambda each: each == HOLE):
            end = min(at + len(list(equal)) * self._ref.chunk_size, self._ref.size)
            if chunk:
                if not self._fresh:
                    self._target.zero(at, end - at)
                self._progress(end - at)
            at = end

    def _broken(self, problem: str) -> IntegrityError:
        return IntegrityError(f"{self._what} cannot be restored: {problem}; use another recovery point")
