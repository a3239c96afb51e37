"""Store again what is damaged, from a second repository that holds the same.

    damaged component ── its copy elsewhere ── saved here once more, as if the broken packs did not exist

Chunks are named by their content, so the same data gives the same names: what is whole is found and not
stored again, and what is broken gets a new place that readers find. The trees that come out must be those
that the recovery point names, or nothing counts. The broken packs go with the next collection, when nothing
needs them any more (see `mending`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.errors import IntegrityError, NotFoundError
from vmkeep.repository import layout, sealed
from vmkeep.repository.copy import origin, origins
from vmkeep.repository.mending import mending
from vmkeep.repository.save_disk import save_disk
from vmkeep.repository.save_stream import save_stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmkeep.repository.manifest import Point, SavedComponent
    from vmkeep.repository.mending import Mending
    from vmkeep.repository.repository import Repository
    from vmkeep.repository.verify import Damage


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was stored again."""

    components: tuple[str, ...] = ()
    """`vm/component of session`: those that are whole again."""
    size: int = 0
    """Bytes that were stored."""
    left: tuple[str, ...] = ()
    """Why others are still damaged."""


def repair(
    repository: Repository, copy: Repository, damages: Iterable[Damage], broken: Sequence[bytes]
) -> Repaired:
    """Store what is damaged again from *copy*.

    Args:
        damages: as `Repository.scrub` found them.
        broken: the names of packs that must not be counted on.

    Raises:
        TemporaryError: a store is away; nothing has changed. Call again.
    """
    concerned = dict.fromkeys((each.vm, each.session, each.place.component) for each in damages)
    if not concerned:
        return Repaired()
    with mending(repository, broken) as work:
        return _Repair(repository, copy, work).run(concerned)


class _Repair:
    def __init__(self, repository: Repository, copy: Repository, work: Mending) -> None:
        self._repository, self._copy, self._work = repository, copy, work
        self._packer = work.packer
        self._size = 0
        self._epoch = repository.keys.newest
        """That of the point at hand: its chunks must get the ids that they have in it."""

    def run(self, concerned: Iterable[tuple[str, str, str]]) -> Repaired:
        done, left = [], []
        for vm, session, component in concerned:
            what = f"{vm}/{component} of {session}"
            try:
                self._save(vm, session, component)
            except (IntegrityError, NotFoundError) as error:
                left.append(f"{what}: {error}")
            else:
                done.append(what)
        if done and not self._work.finish():
            return Repaired((), 0, (*left, *(f"{what}: the repair was taken for dead" for what in done)))
        return Repaired(tuple(done), self._size, tuple(left))

    def _save(self, vm: str, session: str, component: str) -> None:
        """Save a component from its copy, and see that it is the same.

        Raises:
            NotFoundError: there is no copy of it.
            IntegrityError: the copy is damaged too, or holds something else.
        """
        point = self._repository.point(vm, session)
        self._epoch = self._repository.keys.of(
            sealed.epoch_of(self._repository.store.get(layout.decision(vm, session)))
        )
        self._packer.name_by(self._epoch)
        twin = self._twin(point)
        ours, theirs = point.components[component], twin.components.get(component)
        if theirs is None:
            raise NotFoundError(f"{self._copy.store.url} has no {component} of it")
        with self._copy.reading(twin):
            if not self._same(ours, theirs):
                raise IntegrityError(
                    f"what {self._copy.store.url} holds of it is not what was saved: nothing of it was used"
                )

    def _twin(self, point: Point) -> Point:
        found = origins(self._copy, point.vm).get(origin(point))
        if found is None:
            raise NotFoundError(f"{self._copy.store.url} has no copy of it")
        return found

    def _same(self, ours: SavedComponent, theirs: SavedComponent) -> bool:
        """Save *theirs* here; tell whether that gives *ours*."""
        format_ = self._repository.format
        for name, disk in ours.disks.items():
            if name not in theirs.disks:
                return False
            with self._copy.open_disk(theirs.disks[name]) as source:
                saved, stats = save_disk(source, self._packer, format_)
            self._size += stats.stored
            if saved != disk:
                return False
        for name, stream in ours.streams.items():
            if name not in theirs.streams:
                return False
            blocks = self._copy.read_stream(theirs.streams[name])
            again, stats = save_stream(blocks, self._packer, format_, self._epoch.cut)
            self._size += stats.stored
            if again != stream:
                return False
        return True
