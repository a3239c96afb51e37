"""What committed sessions left in the store: their decisions, and the index of their chunks."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.errors import IntegrityError, NotFoundError
from vmkeep.repository import layout, sealed
from vmkeep.repository.decision import VOID_SIZE
from vmkeep.repository.index import Index, PackInfo
from vmkeep.repository.pack import TRAILER, PackReader, footer_length
from vmkeep.repository.parallel import TRANSFERS, in_order
from vmkeep.repository.records import from_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import ObjectInfo, Store

INDEX_KIND: Final = "index"


@dataclass(frozen=True, slots=True)
class PointInfo:
    """A recovery point in a listing."""

    vm: str
    session: str
    key: str
    size: int
    """Bytes of its object."""


def list_points(store: Store, vm: str | None = None) -> list[PointInfo]:
    """Return the recovery points, oldest first; VOID sessions are left out."""
    prefix = layout.POINTS if vm is None else layout.decision(vm, "")
    found = []
    for info in store.list(prefix):
        name, _, session = info.key.removeprefix(layout.POINTS).partition("/")
        if info.size != VOID_SIZE and layout.is_session_id(session):
            found.append(PointInfo(name, session, info.key, info.size))
    return sorted(found, key=lambda point: point.session)


def condemned_packs(store: Store, keys: Keys) -> frozenset[bytes]:
    """Return the packs that a collection under way may delete: nothing new may count on them."""
    records = {info.key for info in store.list(layout.CONDEMNED)}
    packs: set[bytes] = set()
    for key in records:
        folder, _, name = key.rpartition("/")
        if name == "condemned" and f"{folder}/done" not in records:
            with contextlib.suppress(NotFoundError):  # it ended meanwhile
                record = from_json(sealed.unseal(keys, "condemned", key, store.get(key)), key)
                packs.update(bytes.fromhex(pack) for pack in record["packs"])
    return frozenset(packs)


class CommittedIndex:
    """The merged index of all committed sessions. Safe to use from several threads.

    Args:
        cache: a folder that keeps index objects as they are, encrypted; none is needed.
    """

    def __init__(self, store: Store, keys: Keys, cache: Path | None) -> None:
        self._store = store
        self._keys = keys
        self._cache = cache
        self._lock = threading.Lock()
        self._merged: Index | None = None
        self._loaded: frozenset[str] = frozenset()
        self._salvaged: Index | None = None
        self.lost: frozenset[str] = frozenset()
        """Committed sessions whose index is missing or damaged."""

    def current(self) -> Index:
        """Return the index as it was loaded last."""
        return self._merged if self._merged is not None else self.refresh()

    def refresh(self) -> Index:
        """Load what was committed since, and return the index."""
        with self._lock:
            committed = {point.session for point in list_points(self._store)}
            parts: dict[str, list[ObjectInfo]] = defaultdict(list)
            for info in self._store.list(layout.INDEX):
                parts[_session(info.key)].append(info)
            wanted = {info.key for session in committed for info in parts.get(session, ())}
            lost = {session for session in committed if layout.index(session) not in wanted}
            base = self._merged if self._merged is not None and self._loaded <= wanted else None
            loaded = self._loaded if base is not None else frozenset()
            new, broken = self._load(sorted(wanted - loaded))
            if new or base is None:
                self._merged = Index.merge([*([] if base is None else [base]), *new])
                self._salvaged = None
            self._loaded = frozenset(wanted - broken)
            self.lost = frozenset(lost | {_session(key) for key in broken})
            return self._merged if self._merged is not None else Index.empty()

    def widest(self) -> Index:
        """Return the index for readers: what lost indexes described is found again in the packs.

        No writer may use it: it may hold chunks of sessions that were not committed.
        """
        index = self.refresh()
        with self._lock:
            if self._salvaged is None:
                known = {pack.name for pack in index.packs}
                self._salvaged = Index.merge([index, *self._salvage(known)])
            return self._salvaged

    def _load(self, names: list[str]) -> tuple[list[Index], set[str]]:
        new, broken = [], set()
        for name, index in zip(names, in_order(self._read, names, threads=TRANSFERS), strict=True):
            if index is None:
                broken.add(name)
            else:
                new.append(index)
        return new, broken

    def _read(self, key: str) -> Index | None:
        """Return one index object; `None`: it is damaged."""
        try:
            return Index.decode(sealed.unseal(self._keys, INDEX_KIND, key, self._fetch(key)))
        except (IntegrityError, NotFoundError):
            return None

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
            name = bytes.fromhex(info.key.rpartition("/")[2])
            if name in known or info.size < TRAILER.size:
                continue
            with contextlib.suppress(IntegrityError, NotFoundError):
                trailer = self._store.get(info.key, info.size - TRAILER.size)
                length = footer_length(trailer) + TRAILER.size
                footer = self._store.get(info.key, max(0, info.size - length))
                entries = PackReader(self._keys, name).footer(footer)
                yield Index.build((PackInfo(name, info.size),), entries)


def _session(key: str) -> str:
    return key.removeprefix(layout.INDEX).partition(".")[0]
