"""Delete what no recovery point needs, while others save and restore.

    condemn   packs that no kept point needs: from here on nothing new counts on them
    wait      for all who were in the repository then: until they are decided; the dead are fenced
    look      again at the points that are kept now; what one of them needs is spared
    verdict   put once, so that all collectors delete the same packs, and those only
    delete    packs, then indexes that mention nothing else, then points that were forgotten

Before all that, packs of which little is needed may be rewritten (see `repack`), and go like any other.

A collection that must wait, or whose process dies, is carried on by the next one. See `docs/format.md`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from vmkeep.errors import AccessError
from vmkeep.repository import layout, presence, scrubbed
from vmkeep.repository.collections import Verdict
from vmkeep.repository.committed import committed_sessions, decisions, repacks
from vmkeep.repository.decision import VOID_SIZE
from vmkeep.repository.forgotten import forget
from vmkeep.repository.needed import Survey
from vmkeep.repository.parallel import TRANSFERS, for_each
from vmkeep.repository.repack import Repacked, repack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmkeep.repository.index import PackInfo
    from vmkeep.repository.presence import Visitor
    from vmkeep.repository.repository import Repository

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
    repacked: Repacked = field(default=Repacked())
    """What was written anew before."""


@dataclass(frozen=True, slots=True)
class Unneeded:
    """What a collection would do if nobody had to be waited for."""

    size: int = 0
    """Bytes of the packs that it would delete, with those that it would rewrite."""
    repacked: int = 0
    """How many packs it would rewrite."""
    rewritten: int = 0
    """Bytes of the chunks that it would write anew for that, as they are stored."""


@dataclass(frozen=True, slots=True)
class How:
    """How a collection is done."""

    now: datetime
    dead_after: timedelta
    repack_below: float
    """Rewrite packs of which less than this share (0 to 1) is needed."""
    renew: bool = False
    """Rewrite also all packs of earlier data epochs."""


class Collector:
    """One collection; see `Repository.collect`."""

    def __init__(self, repository: Repository, how: How) -> None:
        self._repository = repository
        self._store = repository.store
        self._committed = repository.committed
        self._collections = repository.committed.collections
        self._how = how
        self._survey = Survey(repository)
        self._waits_for: dict[str, Visitor] = {}
        self._locked = 0
        self._lock = threading.Lock()

    def run(self) -> Collected:
        """Carry on what earlier collections left, and make a new one when something is unneeded."""
        alive = self._settle()
        for number, decided in self._collections.under_way().items():
            if not decided:
                self._finish(number)
        repacked = self._repack(alive)
        self._condemn(alive)
        packs = self._delete_packs()
        self._delete_indexes()
        self._delete_points()
        self._delete(scrubbed.superseded(self._store))
        self._close()
        waits_for = tuple(self._waits_for.values())
        return Collected(len(packs), sum(packs.values()), self._locked, waits_for, repacked)

    def _settle(self) -> tuple[Visitor, ...]:
        how = self._how
        return presence.settle(self._store, self._repository.keys, now=how.now, dead_after=how.dead_after)

    def _repack(self, alive: tuple[Visitor, ...]) -> Repacked:
        # Two that rewrite the same packs at once harm nothing, and do the work twice.
        if not (self._how.repack_below or self._how.renew) or any(each.role == "repacker" for each in alive):
            return Repacked()
        how = self._how
        return repack(
            self._repository, self._survey.needed(), below=how.repack_below, now=how.now, renew=how.renew
        )

    def _condemn(self, alive: tuple[Visitor, ...]) -> None:
        there = frozenset(_packs(self._repository))  # before the points: what is put later is not ours
        packs = there - self._survey.needed().packs - self._collections.pending() - self._collections.dead()
        if alive:
            # Packs that no index mentions may be theirs; condemning them would only have to wait.
            packs &= self._mentioned()
        if packs:
            number = layout.new_session_id(self._how.now)
            self._collections.condemn(number, packs)
            self._finish(number)

    def _finish(self, number: str) -> None:
        """Decide what a collection deletes, if nobody must be waited for."""
        waiting = self._collections.wait_for(number, presence.names(self._store))
        still = {each.session: each for each in self._settle() if each.session in waiting}
        self._waits_for.update(still)
        if still:
            return
        doomed = self._collections.condemned(number) - self._survey.needed(but=number).packs
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
        dead, mentioned = self._collections.dead(), self._committed.mentioned
        self._forget_repacks(dead, mentioned)
        _, gone = committed_sessions(self._store)
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
            key.rpartition("/")[2] for key, size in decisions(self._store).items() if size == VOID_SIZE
        } - gone
        of_void = {
            info.key for info in self._store.list(layout.INDEX) if layout.session_of_index(info.key) in void
        }
        self._delete(useless | of_void)

    def _forget_repacks(self, dead: frozenset[bytes], mentioned: Mapping[str, Sequence[PackInfo]]) -> None:
        """Put tombstones for those of whose new packs none is left, as retention does for points."""
        used = {
            layout.session_of_index(key)
            for key, packs in mentioned.items()
            if not dead.issuperset(pack.name for pack in packs)
        }
        known = {layout.session_of_index(key) for key in mentioned}
        _, gone = committed_sessions(self._store)
        for session in (repacks(self._store) & known) - used - gone:
            forget(self._store, self._repository.keys, vm="", session=session, reason="rewritten again")

    def _delete_points(self) -> None:
        """Delete the points, and what else was decided, behind tombstones."""
        _, gone = committed_sessions(self._store)
        self._delete({key for key in decisions(self._store) if key.rpartition("/")[2] in gone})

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


def unneeded(
    repository: Repository, *, without: frozenset[str] = frozenset(), repack_below: float = 0.0
) -> Unneeded:
    """Return what a collection would do when the points of some sessions are forgotten.

    Deletes nothing. What writers put that are at work now counts as not needed too.
    """
    there = _packs(repository)
    needed = Survey(repository, without=without).needed()
    sparse = [*needed.sparse(repack_below)] if repack_below else []
    return Unneeded(
        sum(size for name, size in there.items() if name not in needed.packs)
        + sum(chunks[0].pack.size for chunks, _ in sparse),
        len(sparse),
        sum(size for _, size in sparse),
    )


def collect(
    repository: Repository,
    *,
    now: datetime | None = None,
    dead_after: timedelta = DEAD_AFTER,
    repack_below: float = 0.0,
    renew: bool = False,
) -> Collected:
    """Delete what no point needs; see `Repository.collect`."""
    repository.format.require("collect")
    return Collector(repository, How(now or datetime.now(UTC), dead_after, repack_below, renew)).run()


def _packs(repository: Repository) -> dict[bytes, int]:
    """Return the packs in the store with their sizes."""
    return {layout.pack_name(info.key): info.size for info in repository.store.list(layout.PACKS)}
