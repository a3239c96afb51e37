"""Delete what no recovery point needs, while others save and restore.

    condemn   packs that no kept point needs: from here on nothing new counts on them
    wait      for all who were in the repository then: until they are decided; the dead are fenced
    look      again at the points that are kept now; what one of them needs is spared
    verdict   put once, so that all collectors delete the same packs, and those only
    delete    packs, then indexes that mention nothing else, then points that were forgotten

A collection that must wait, or whose process dies, is carried on by the next one. See `docs/format.md`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from vmkeep.errors import AccessError, IntegrityError, NotFoundError
from vmkeep.repository import layout, presence, scrubbed
from vmkeep.repository.collections import Verdict
from vmkeep.repository.committed import list_points, sealed_sessions
from vmkeep.repository.decision import VOID_SIZE
from vmkeep.repository.mark import live_packs
from vmkeep.repository.parallel import TRANSFERS, for_each

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmkeep.repository.committed import PointInfo
    from vmkeep.repository.index import Index
    from vmkeep.repository.presence import Visitor
    from vmkeep.repository.repository import Repository

    _Marked = tuple[list[PointInfo], Index, frozenset[bytes]]

DEAD_AFTER: Final = timedelta(days=7)
"""After which time a session that is not decided is taken for dead; all its work is lost then."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did."""

    packs: int = 0
    """That were deleted."""
    size: int = 0
    """Bytes of these packs."""
    locked: int = 0
    """Objects that could not be deleted yet: the store does not allow it."""
    waits_for: tuple[Visitor, ...] = ()
    """Who must leave before the rest can be deleted."""


class Collector:
    """One collection; see `Repository.collect`."""

    def __init__(self, repository: Repository, *, now: datetime, dead_after: timedelta) -> None:
        self._repository = repository
        self._store = repository.store
        self._committed = repository.committed
        self._collections = repository.committed.collections
        self._now = now
        self._dead_after = dead_after
        self._marked: _Marked | None = None
        self._waits_for: dict[str, Visitor] = {}
        self._locked = 0
        self._lock = threading.Lock()

    def run(self) -> Collected:
        """Carry on what earlier collections left, and make a new one when something is unneeded."""
        alive = self._settle()
        for number, decided in self._collections.under_way().items():
            if not decided:
                self._finish(number)
        self._condemn(alive)
        packs = self._delete_packs()
        self._delete_indexes()
        self._delete_points()
        self._delete(scrubbed.superseded(self._store))
        self._close()
        return Collected(len(packs), sum(packs.values()), self._locked, tuple(self._waits_for.values()))

    def _settle(self) -> tuple[Visitor, ...]:
        return presence.settle(self._store, self._repository.keys, now=self._now, dead_after=self._dead_after)

    def _condemn(self, alive: tuple[Visitor, ...]) -> None:
        there = frozenset(_packs(self._repository))  # before the points: what is put later is not ours
        packs = there - self._live() - self._collections.pending() - self._collections.dead()
        if alive:
            # Packs that no index mentions may be theirs; condemning them would only have to wait.
            packs &= self._mentioned()
        if packs:
            number = layout.new_session_id(self._now)
            self._collections.condemn(number, packs)
            self._finish(number)

    def _finish(self, number: str) -> None:
        """Decide what a collection deletes, if nobody must be waited for."""
        waiting = self._collections.wait_for(number, presence.names(self._store))
        still = {each.session: each for each in self._settle() if each.session in waiting}
        self._waits_for.update(still)
        if still:
            return
        doomed = self._collections.condemned(number) - self._live()
        carried, absorbs = self._finished_before()
        verdict = self._collections.decide(number, Verdict(doomed, carried, absorbs))
        for other in verdict.absorbs:
            self._collections.close(other)

    def _finished_before(self) -> tuple[frozenset[bytes], frozenset[str]]:
        """Return what a new verdict carries on: packs that are gone and mentioned, and whose they were."""
        there, mentioned = _packs(self._repository).keys(), self._mentioned()
        carried: frozenset[bytes] = frozenset()
        absorbs = set()
        for number, decided in self._collections.under_way().items():
            if decided and there.isdisjoint(dead := self._collections.verdict(number).dead):
                carried |= dead & mentioned
                absorbs.add(number)
        return carried, frozenset(absorbs)

    def _live(self) -> frozenset[bytes]:
        """Return the packs that the kept points need, as they are now."""
        points = list_points(self._store)
        marked = self._marked
        if marked is None or marked[0] != points or marked[1] is not self._committed.refresh():
            self._marked = marked = _needed(self._repository)
        return marked[2]

    def _mentioned(self) -> frozenset[bytes]:
        return frozenset(pack.name for packs in self._committed.mentioned.values() for pack in packs)

    def _delete_packs(self) -> dict[bytes, int]:
        """Delete what verdicts name, and return the packs that are gone now, with their sizes."""
        there = _packs(self._repository)
        doomed = [name for name in self._collections.dead() if name in there]
        gone = self._delete({layout.pack(name) for name in doomed})
        return {name: there[name] for name in doomed if layout.pack(name) in gone}

    def _delete_indexes(self) -> None:
        """Delete indexes that count no more: of VOID sessions, and of forgotten points without packs."""
        self._committed.refresh()
        _, gone = sealed_sessions(self._store)
        dead, mentioned = self._collections.dead(), self._committed.mentioned
        wanted = {
            layout.session_of_index(key)
            for key, packs in mentioned.items()
            if not dead.issuperset(pack.name for pack in packs)
        }
        useless = {
            key
            for key in mentioned
            if (session := layout.session_of_index(key)) in gone and session not in wanted
        }
        void = {
            info.key.rpartition("/")[2] for info in self._store.list(layout.POINTS) if info.size == VOID_SIZE
        } - gone
        of_void = {
            info.key for info in self._store.list(layout.INDEX) if layout.session_of_index(info.key) in void
        }
        self._delete(useless | of_void)

    def _delete_points(self) -> None:
        """Delete the points behind tombstones."""
        _, gone = sealed_sessions(self._store)
        self._delete(
            {info.key for info in self._store.list(layout.POINTS) if info.key.rpartition("/")[2] in gone}
        )

    def _close(self) -> None:
        """Let go of collections whose packs are gone and that no index mentions."""
        there = _packs(self._repository).keys()
        self._committed.refresh()
        known = there | self._mentioned()
        for number, decided in self._collections.under_way().items():
            if decided and known.isdisjoint(self._collections.verdict(number).dead):
                self._collections.close(number)

    def _delete(self, keys: Iterable[str]) -> set[str]:
        """Delete objects, and return those that could be; what is locked is left for a later collection."""
        gone: set[str] = set()

        def delete(key: str) -> None:
            try:
                self._store.delete(key)
            except AccessError:
                with self._lock:
                    self._locked += 1
                return
            with self._lock:
                gone.add(key)

        for_each(delete, sorted(keys), threads=TRANSFERS)
        return gone


def unneeded(repository: Repository, *, without: frozenset[str] = frozenset()) -> dict[bytes, int]:
    """Return the packs, with their sizes, that no point needs when those of some sessions are forgotten.

    Deletes nothing. What writers put that are at work now is in it too.
    """
    there = _packs(repository)
    _, _, live = _needed(repository, without)
    return {name: size for name, size in there.items() if name not in live}


def collect(
    repository: Repository, *, now: datetime | None = None, dead_after: timedelta = DEAD_AFTER
) -> Collected:
    """Delete what no point needs; see `Repository.collect`."""
    repository.format.require("collect")
    return Collector(repository, now=now or datetime.now(UTC), dead_after=dead_after).run()


def _needed(repository: Repository, without: frozenset[str] = frozenset()) -> _Marked:
    """Return the points that are kept, the index, and the packs that they need.

    Raises:
        IntegrityError: something of it is missing or damaged.
    """
    committed = repository.committed
    while True:
        points = list_points(repository.store)
        index = committed.refresh()  # behind the points: it knows all their chunks
        try:
            _require_all_indexes(committed.lost)
            chosen = (repository.load(info) for info in points if info.session not in without)
            return points, index, live_packs(chosen, repository.trees.chunks, index)
        except (IntegrityError, NotFoundError):
            # Another collector may have deleted already what was forgotten since it was listed.
            if list_points(repository.store) == points:
                raise


def _require_all_indexes(lost: frozenset[str]) -> None:
    if lost:
        raise IntegrityError(
            f"the indexes of sessions {', '.join(sorted(lost)[:5])} are missing or damaged: nothing was "
            "collected, for what they describe may be needed; run 'vmkeep verify'"
        )


def _packs(repository: Repository) -> dict[bytes, int]:
    """Return the packs in the store with their sizes."""
    return {layout.pack_name(info.key): info.size for info in repository.store.list(layout.PACKS)}
