"""Write a saved disk to a target: in the order of the packs, and nothing for holes of a fresh target.

What a present disk holds is taken from there. A chunk's id is a keyed hash of all its bytes, so that what
passes is what was saved; only the rest is fetched.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from typing import TYPE_CHECKING, Final

from vmkeep.errors import InputError, IntegrityError, SourceError
from vmkeep.repository.parallel import READS, for_each, in_order
from vmkeep.repository.save_disk import HOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from vmkeep.disks.device import DiskSource, DiskTarget
    from vmkeep.repository.chunks import Fetched
    from vmkeep.repository.index import Location
    from vmkeep.repository.manifest import DiskRef
    from vmkeep.repository.trees import Trees

_COMPARED: Final = 128
"""Chunks of a present disk that are compared before what it lacks is fetched; more make longer requests."""
_TRIED: Final = 8
"""How many of these are tried first."""


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
            wanted = [(start + i * self._ref.chunk_size, one) for i, one in enumerate(ids) if one != HOLE]
            for some in self._lacking(wanted):
                yield from self._fetched(some)

    def _fetched(
        self, wanted: Iterable[tuple[int, bytes]]
    ) -> Iterator[tuple[list[Location], Mapping[bytes, Sequence[int]]]]:
        places = defaultdict[bytes, list[int]](list)
        for offset, chunk in wanted:
            places[chunk].append(offset)
        runs, missing = self._trees.chunks.runs(places)
        for each in missing:
            self._use(each, places)
        for run in runs:
            yield run, places

    def _lacking(self, wanted: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
        """Write what the present disk holds, and yield the rest: while that is fetched, it is read on.

        Where it holds none of a few chunks, it is not read for the others around them.
        """
        if self.present is None:
            yield wanted
            return
        for at in range(0, len(wanted), _COMPARED):
            some = wanted[at : at + _COMPARED]
            step = -(-len(some) // _TRIED)
            tried, others = some[::step], [one for i, one in enumerate(some) if i % step]
            lacking = self._not_held(self.present, tried)
            lacking += others if len(lacking) == len(tried) else self._not_held(self.present, others)
            yield lacking

    def _not_held(self, present: DiskSource, wanted: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        sizes = [*in_order(lambda one: self._take(present, *one), wanted)]
        self.reused += sum(sizes)
        return [one for one, size in zip(wanted, sizes, strict=True) if not size]

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
