"""Locks of what recovery points need, extended before they end.

    put          packs, indexes, decisions, keys: each locked from the moment at which it exists
    each prune   [====== what is needed ======]--extended-->      and nothing else, so that the rest ends

Only who may read packs knows what a recovery point needs: an inherited leaf names chunks that its writer
never sees. So it is not the backup that extends, but the collector, each time that it runs.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vmkeep.errors import AccessError, IntegrityError, NotFoundError
from vmkeep.repository import layout
from vmkeep.repository.committed import list_points
from vmkeep.repository.needed import Survey
from vmkeep.repository.parallel import for_each
from vmkeep.stores.lock import LockingStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.repository.repository import Repository


_AT_ONCE: Final = 16
"""Small requests, which wait for the service and for nothing else."""


@dataclass(frozen=True, slots=True)
class Extended:
    """What was done about locks."""

    looked: int = 0
    """Objects whose lock was looked at."""
    extended: int = 0
    refused: tuple[str, ...] = ()
    """Why locks that are due could not be extended."""


def extend(repository: Repository, *, now: datetime | None = None) -> Extended:
    """Extend the locks of all that recovery points need, where less is left of them than is promised.

    Where something is damaged, so that it is not known what is needed, everything is locked on.

    Args:
        now: the time; by default the machine's clock.

    Raises:
        TemporaryError: the store is away; what was extended stays so.
        AccessError: the credentials may not look at locks.
    """
    store = repository.store
    if not isinstance(store, LockingStore) or store.lock is None:
        return Extended()
    return _Extension(store, now or datetime.now(UTC)).run(sorted(_needed(repository)))


class _Extension:
    def __init__(self, store: LockingStore, now: datetime) -> None:
        self._store, self._now = store, now
        self._lock = threading.Lock()
        self._extended = 0
        self._refused: list[str] = []

    def run(self, keys: list[str]) -> Extended:
        for_each(self._look, keys, threads=_AT_ONCE)
        return Extended(len(keys), self._extended, tuple(sorted(self._refused)))

    def _look(self, key: str) -> None:
        lock = self._store.lock
        if lock is None:
            return
        try:
            if not lock.is_due(self._store.locked_until(key), self._now):
                return
            self._store.extend_lock(key, lock.until(self._now))
        except NotFoundError:
            return  # forgotten and collected meanwhile
        except AccessError as error:
            if lock.is_due(self._store.locked_until(key), self._now):  # nobody else extended it meanwhile
                with self._lock:
                    self._refused.append(str(error))
            return
        with self._lock:
            self._extended += 1


def _needed(repository: Repository) -> Iterator[str]:
    """Yield the keys of the objects without which a recovery point cannot be restored, and of holds."""
    store = repository.store
    yield layout.FORMAT
    for prefix in (layout.KEYS, layout.HOLDS, layout.REPACKED):
        yield from (info.key for info in store.list(prefix))
    yield from (info.key for info in list_points(store))
    packs = _packs(repository)
    yield from map(layout.pack, packs)
    for key, mentioned in repository.committed.mentioned.items():
        if any(pack.name in packs for pack in mentioned):
            yield key


def _packs(repository: Repository) -> frozenset[bytes]:
    try:
        return Survey(repository).needed().packs
    except IntegrityError:
        there = {layout.pack_name(info.key) for info in repository.store.list(layout.PACKS)}
        return frozenset(there - repository.committed.collections.dead())
