"""Store again what is damaged from the disks that it was saved from, where they still hold it.

    damage in a leaf    ids of all that lies below it, read anew  ──  do they make the leaf that is lost?
    damage in a chunk   its range of the disk, read anew          ──  does it have the id that is lost?

An id is a keyed hash of all bytes: what passes is what was saved, whenever that was. What a disk holds by now
is refused, and only ranges that are damaged are read. It ends as in `mending`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.errors import IntegrityError, NotFoundError, SourceError
from vmkeep.repository.mending import mending
from vmkeep.repository.save_disk import HOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmkeep.disks.device import DiskSource
    from vmkeep.repository.manifest import DiskRef
    from vmkeep.repository.mending import Mending
    from vmkeep.repository.repository import Repository
    from vmkeep.repository.verify import Damage

_DISK: Final = "disk "


@dataclass(frozen=True, slots=True)
class Reread:
    """What the disks still held."""

    mended: tuple[Damage, ...] = ()
    size: int = 0
    """Bytes that were stored."""
    left: tuple[tuple[Damage, str], ...] = ()
    """What is still damaged, and why."""


def repair_from_disks(
    repository: Repository,
    damages: Iterable[Damage],
    broken: Sequence[bytes],
    open_disk: Callable[[str, str], DiskSource],
) -> Reread:
    """Store again what the disks that it was saved from still hold.

    Args:
        damages: as `Repository.scrub` found them.
        broken: the names of packs that must not be counted on.
        open_disk: opens a disk of a VM, both by name; may raise `SourceError` or `NotFoundError`.

    Raises:
        TemporaryError: the store is away; nothing has changed. Call again.
    """
    damages = list(damages)
    if not damages:
        return Reread()
    with contextlib.ExitStack() as disks, mending(repository, broken) as work:
        reading = _Reading(repository, work, open_disk, disks)
        mended, left = [], []
        for damage in damages:
            try:
                reading.mend(damage)
            except (SourceError, NotFoundError, IntegrityError) as error:
                left.append((damage, str(error)))
            else:
                mended.append(damage)
        if mended and not work.finish():
            left += [(damage, "the repair was taken for dead") for damage in mended]
            return Reread(left=tuple(left))
    return Reread(tuple(mended), reading.stored, tuple(left))


class _Reading:
    def __init__(
        self,
        repository: Repository,
        work: Mending,
        open_disk: Callable[[str, str], DiskSource],
        disks: contextlib.ExitStack,
    ) -> None:
        self._repository, self._work = repository, work
        self._open, self._stack = open_disk, disks
        self._disks: dict[tuple[str, str], DiskSource | Exception] = {}
        self.stored = 0

    def mend(self, damage: Damage) -> None:
        """Store again what is damaged there.

        Raises:
            SourceError, NotFoundError: there is no such disk any more, or it cannot be read.
            IntegrityError: it holds something else now.
        """
        kind, name = damage.place.item[: len(_DISK)], damage.place.item[len(_DISK) :]
        if kind != _DISK:
            raise NotFoundError("only whole disks are read anew; back this component up again")
        point = self._repository.point(damage.vm, damage.session)
        ref = point.components[damage.place.component].disks[name]
        source = self._disk(damage.vm, name)
        trees = self._repository.trees
        number = damage.place.offset // (trees.fan * ref.chunk_size)
        try:
            ids = trees.disk_leaf(ref, number)
        except IntegrityError:
            ids = self._leaf(source, ref, number)
        start, _ = trees.disk_span(ref, number)
        for below, chunk in enumerate(ids):
            at = start + below * ref.chunk_size
            if damage.place.offset <= at < damage.place.offset + damage.place.length and chunk != HOLE:
                self._chunk(source, ref, at, chunk)

    def _chunk(self, source: DiskSource, ref: DiskRef, at: int, chunk: bytes) -> None:
        if self._work.packer.has(chunk):
            return
        data = _read(source, ref, at)
        if not self._repository.keys.is_id(chunk, data, self._repository.keys.newest.epoch):
            raise IntegrityError("the disk holds something else there now")
        self.stored += self._work.packer.put(data, chunk).stored

    def _leaf(self, source: DiskSource, ref: DiskRef, number: int) -> list[bytes]:
        """Make a leaf again from what lies below it, and store it."""
        keys = self._repository.keys
        start, end = self._repository.trees.disk_span(ref, number)
        below: list[list[bytes]] = []
        """Of each chunk the ids that it has by the keys of each data epoch."""
        for at in range(start, end, ref.chunk_size):
            data = _read(source, ref, at)
            below.append(
                [keys.of(n).chunk_id(data) if any(data) else HOLE for n in range(1, keys.newest.epoch + 1)]
            )
        for ids in self._guesses(below):
            body = b"".join(ids)
            if keys.is_id(ref.leaves[number], body, keys.newest.epoch):
                self.stored += self._work.packer.put(body, ref.leaves[number]).stored
                return ids
        raise IntegrityError("the disk is not what it was in this range, so that its list of chunks is lost")

    def _guesses(self, below: list[list[bytes]]) -> Iterator[list[bytes]]:
        """Yield lists that the leaf may have been: of one data epoch, or of those ids that are known."""
        yield from (list(ids) for ids in zip(*below, strict=True))
        known = self._repository.committed.current()
        yield [next((one for one in reversed(ids) if one in known), ids[-1]) for ids in below]

    def _disk(self, vm: str, name: str) -> DiskSource:
        key = (vm, name)
        if key not in self._disks:
            try:
                self._disks[key] = self._stack.enter_context(self._open(vm, name))
            except (SourceError, NotFoundError) as error:
                self._disks[key] = error
        found = self._disks[key]
        if isinstance(found, Exception):
            raise found
        return found


def _read(source: DiskSource, ref: DiskRef, at: int) -> bytearray:
    if source.size != ref.size:
        raise IntegrityError(f"the disk has {source.size} bytes now, and had {ref.size}")
    data = bytearray(min(ref.chunk_size, ref.size - at))
    source.read_into(at, memoryview(data))
    return data
