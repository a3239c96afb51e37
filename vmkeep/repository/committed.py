"""What committed sessions left in the store: their decisions, and the index of their chunks."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.errors import IntegrityError, NotFoundError
from vmkeep.repository import layout, merged, sealed
from vmkeep.repository.collections import Collections
from vmkeep.repository.decision import VOID_SIZE
from vmkeep.repository.forgotten import forgotten_sessions
from vmkeep.repository.index import Index, PackInfo
from vmkeep.repository.pack import HEADER, TRAILER, PackReader, epoch_of, footer_length
from vmkeep.repository.parallel import TRANSFERS, in_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import Store

INDEX_KIND: Final = "index"
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class PointInfo:
    """A recovery point in a listing."""

    vm: str
    session: str
    key: str
    size: int
    """Bytes of its object."""


def list_points(store: Store, vm: str | None = None) -> list[PointInfo]:
    """Return the recovery points, oldest first; those that are VOID or forgotten are left out."""
    found = list(_listed(store, layout.POINTS if vm is None else layout.decision(vm, "")))
    gone = forgotten_sessions(store) if found else frozenset()
    return sorted((point for point in found if point.session not in gone), key=lambda point: point.session)


def committed_sessions(store: Store) -> tuple[frozenset[str], frozenset[str]]:
    """Return the sessions whose indexes count, and those of them that have a tombstone.

    A decision may be removed, but only behind its tombstone: so decisions are listed first.
    """
    kept = {point.session for point in _listed(store, layout.POINTS)}
    kept |= repacks(store)
    gone = forgotten_sessions(store)
    return frozenset(kept | gone), gone


def repacks(store: Store) -> frozenset[str]:
    """Return the sessions that rewrote packs, without those that are VOID."""
    return frozenset(
        info.key.removeprefix(layout.REPACKED)
        for info in store.list(layout.REPACKED)
        if info.size != VOID_SIZE
    )


def decisions(store: Store) -> dict[str, int]:
    """Return the keys of all decisions with their sizes, also those that do not count."""
    return {info.key: info.size for prefix in (layout.POINTS, layout.REPACKED) for info in store.list(prefix)}


def _listed(store: Store, prefix: str) -> Iterator[PointInfo]:
    for info in store.list(prefix):
        name, _, session = info.key.removeprefix(layout.POINTS).partition("/")
        if info.size != VOID_SIZE and layout.is_session_id(session):
            yield PointInfo(name, session, info.key, info.size)


def _index_keys(store: Store) -> set[str]:
    return {info.key for info in store.list(layout.INDEX)}


class CommittedIndex:
    """The merged index of all committed sessions. Safe to use from several threads.

    Args:
        cache: a folder that keeps index objects as they are, encrypted, and what was made of them (see
            `merged`); none is needed.
    """

    def __init__(self, store: Store, keys: Keys, cache: Path | None) -> None:
        self._store = store
        self._keys = keys
        self._cache = cache
        self._lock = threading.Lock()
        self._merged: Index | None = None
        self._loaded: frozenset[str] = frozenset()
        self._dead: frozenset[bytes] = frozenset()
        self._salvaged: Index | None = None
        self.collections = Collections(store, keys)
        self.mentioned: dict[str, Sequence[PackInfo]] = {}
        """The packs in each index object, also those that are deleted."""
        self.lost: frozenset[str] = frozenset()
        """Sessions whose index is missing, although their points are kept, or damaged."""
        self.damaged: frozenset[str] = frozenset()
        """The index objects that cannot be read."""

    def sessions(self) -> dict[bytes, str]:
        """Return which session stored each pack that an index mentions."""
        mentioned = self.mentioned
        return {pack.name: layout.session_of_index(key) for key, packs in mentioned.items() for pack in packs}

    def checksums(self) -> dict[bytes, int]:
        """Return the CRC-32 of the packs whose index says it; reads all indexes."""
        parts, _ = self._load(sorted(self.mentioned), missing_is_damage=True)
        packs = (pack for index in parts.values() for pack in index.packs)
        return {pack.name: pack.crc for pack in packs if pack.crc is not None}

    def current(self) -> Index:
        """Return the index as it was loaded last."""
        return self._merged if self._merged is not None else self.refresh()

    def refresh(self) -> Index:
        """Load what was committed since, and return the index without the packs that are deleted."""
        with self._lock:
            for _ in range(_ATTEMPTS):
                # An index was removed after it was listed: what it described may be found in a newer one.
                with contextlib.suppress(NotFoundError):
                    return self._refreshed()
            return self._refreshed(missing_is_damage=True)

    def _refreshed(self, *, missing_is_damage: bool = False) -> Index:
        # First: a collection is done only when no index mentions its packs any more.
        dead = self.collections.dead()
        wanted, without = self._wanted()
        if self._merged is None:
            self._recall()
        base = self._merged if self._merged is not None and self._loaded <= wanted else None
        loaded = self._loaded if base is not None else frozenset()
        new, broken = self._load(sorted(wanted - loaded), missing_is_damage=missing_is_damage)
        known = {**self.mentioned, **{key: index.packs for key, index in new.items()}}
        self.mentioned = {key: packs for key, packs in known.items() if key in wanted}
        if new or base is None or not dead <= self._dead:
            self._merged = self._merge([*([] if base is None else [base]), *new.values()], dead | self._dead)
            self._salvaged = None
        self._dead |= dead
        self._loaded = frozenset(wanted - broken)
        self.damaged = frozenset(broken)
        self.lost = frozenset(without | {layout.session_of_index(key) for key in broken})
        return self._merged if self._merged is not None else Index.empty()

    def _recall(self) -> None:
        """Begin with what this machine remembers; what was committed since is loaded as always."""
        found = None if self._cache is None else merged.read(self._remembered(self._cache))
        if found is not None:
            self._merged, self._dead = found.index, found.dead
            self._loaded, self.mentioned = frozenset(found.mentioned), dict(found.mentioned)

    def _merge(self, parts: list[Index], dead: frozenset[bytes]) -> Index:
        """Return one index of all, on the disk of this machine where it may lie there."""
        if self._cache is not None:
            path = self._remembered(self._cache)
            with contextlib.suppress(OSError):  # a cache that cannot be written is a slow one, no error
                merged.write(path, parts, self.mentioned, dead)
                found = merged.read(path)  # unless another process has put its own meanwhile
                if found and (found.mentioned.keys(), found.dead) == (self.mentioned.keys(), dead):
                    return found.index
        return Index.merge(parts, without=dead)

    def _remembered(self, cache: Path) -> Path:
        return cache / self._keys.repository.hex() / "merged"

    def _wanted(self) -> tuple[set[str], set[str]]:
        """Return the keys of the indexes that count, and the sessions that should have one and have none.

        Indexes are listed first: one that is not there any more was removed when all that is needed of it
        was described by sessions that are committed, and which are therefore seen.
        """
        there = _index_keys(self._store)
        committed, gone = committed_sessions(self._store)
        without = {session for session in committed - gone if layout.index(session) not in there}
        if without:  # committed since, or removed behind a tombstone?
            there |= _index_keys(self._store)
            gone = forgotten_sessions(self._store)
            without = {session for session in without - gone if layout.index(session) not in there}
        return {key for key in there if layout.session_of_index(key) in committed}, without

    def widest(self) -> Index:
        """Return the index for readers: what lost indexes described is found again in the packs.

        No writer may use it: it may hold chunks of sessions that were not committed.
        """
        index = self.refresh()
        with self._lock:
            if self._salvaged is None:
                found = self._unindexed(index)
                self._salvaged = Index.merge([index, found]) if found.packs else index
            return self._salvaged

    def unindexed(self) -> Index:
        """Return what the packs hold that no index knows; they may be of sessions that were not committed."""
        index = self.current()
        with self._lock:
            return self._unindexed(index)

    def _unindexed(self, index: Index) -> Index:
        return Index.merge(self._salvage({pack.name for pack in index.packs} | self._dead))

    def _load(self, names: list[str], *, missing_is_damage: bool) -> tuple[dict[str, Index], set[str]]:
        """Return the indexes that can be read, and the names of the others."""

        def read(key: str) -> Index | None:
            try:
                return Index.decode(sealed.unseal(self._keys, INDEX_KIND, key, self._fetch(key)))
            except IntegrityError:
                return None
            except NotFoundError:
                if not missing_is_damage:
                    raise
                return None

        found = dict(zip(names, in_order(read, names, threads=TRANSFERS), strict=True))
        new = {key: index for key, index in found.items() if index is not None}
        return new, found.keys() - new.keys()

    def _fetch(self, key: str) -> bytes:
        if self._cache is None:
            return self._store.get(key)
        cached = self._cache / self._keys.repository.hex() / key
        with contextlib.suppress(OSError):
            data = cached.read_bytes()
            with contextlib.suppress(IntegrityError):
                sealed.unseal(self._keys, INDEX_KIND, key, data)
                return data
        data = self._store.get(key)
        with contextlib.suppress(OSError):  # a cache that cannot be written is a slow one, no error
            cached.parent.mkdir(parents=True, exist_ok=True)
            new = cached.with_name(f".{cached.name}.{os.getpid()}.{threading.get_ident()}")
            new.write_bytes(data)
            new.replace(cached)
        return data

    def _salvage(self, known: set[bytes]) -> Iterator[Index]:
        """Yield an index for each pack that no index knows, from its footer."""
        for info in self._store.list(layout.PACKS):
            name = layout.pack_name(info.key)
            if name in known or info.size < TRAILER.size:
                continue
            with contextlib.suppress(IntegrityError, NotFoundError):
                trailer = self._store.get(info.key, info.size - TRAILER.size)
                length = footer_length(trailer) + TRAILER.size
                footer = self._store.get(info.key, max(0, info.size - length))
                pack = PackInfo(name, info.size, epoch_of(self._store.get(info.key, 0, HEADER.size)))
                yield Index.build((pack,), PackReader(self._keys, pack).footer(footer))
