"""Store again what is damaged, from a second repository that holds the same.

    damaged component ── its copy elsewhere ── saved here once more, as if the broken packs did not exist

Chunks are named by their content, so the same data gives the same names: what is whole is found and not
stored again, and what is broken gets a new place that readers find. The trees that come out must be those
that the recovery point names, or nothing counts. It ends like a rewriting of packs (see `repack`), and the
broken packs go with the next collection, when nothing needs them any more. Nothing is changed or deleted.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkeep.disks import scratch
from vmkeep.errors import IntegrityError, NotFoundError, VmkeepError
from vmkeep.repository import layout, presence, sealed
from vmkeep.repository.copy import origin, origins
from vmkeep.repository.decision import Decision, decide
from vmkeep.repository.index import Index
from vmkeep.repository.packer import Packer
from vmkeep.repository.repack import commit
from vmkeep.repository.save_disk import save_disk
from vmkeep.repository.save_stream import save_stream
from vmkeep.repository.spool import Spool
from vmkeep.repository.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmkeep.repository.index import PackInfo
    from vmkeep.repository.manifest import Point, SavedComponent
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
    session = layout.new_session_id(datetime.now(UTC))
    with scratch.scratch_folder() as folder:  # the next vmkeep removes it, should we be killed
        presence.announce_repacker(repository.store, repository.keys, session)
        work = _Repair(repository, copy, session, Spool(folder / "spool"), frozenset(broken))
        try:
            done = work.run(concerned)
        except BaseException:
            with contextlib.suppress(VmkeepError):
                void = Decision(secrets.token_hex(16), None, "the repair failed")
                decide(repository.store, repository.keys, layout.repacked(session), void)
                presence.leave(repository.store, session)
            raise
        finally:
            work.close()
        presence.leave(repository.store, session)
    return done


class _Repair:
    def __init__(
        self, repository: Repository, copy: Repository, session: str, spool: Spool, broken: frozenset[bytes]
    ) -> None:
        self._repository, self._copy, self._session = repository, copy, session
        self._broken = broken
        self._spool = spool
        self._uploads = Uploads(repository.store, spool)
        pending = repository.committed.collections.pending()
        self._packer = Packer(
            repository.keys,
            spool,
            Index.merge([repository.committed.refresh()], without=broken | pending),
            most=repository.format.pack_most,
            finished=self._finished,
        )
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
        if done:
            self._packer.flush()
            self._uploads.upload()
            if not commit(self._repository, self._session, self._packer.packs.values(), self._broken):
                return Repaired((), 0, (*left, *(f"{what}: the repair was taken for dead" for what in done)))
        return Repaired(tuple(done), self._size, tuple(left))

    def close(self) -> None:
        self._packer.abandon()
        self._uploads.stop()
        self._spool.close()

    def _finished(self, pack: PackInfo) -> None:
        self._uploads.add(pack)

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
