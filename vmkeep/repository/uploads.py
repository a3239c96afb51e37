"""Finished packs from the spool to the store."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from vmkeep.errors import IntegrityError
from vmkeep.repository import layout
from vmkeep.repository.parallel import TRANSFERS, for_each
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from vmkeep.repository.index import PackInfo
    from vmkeep.repository.spool import Spool
    from vmkeep.stores.base import Store

_PART: Final = 8 * MiB


class Uploads:
    """Puts packs, each once. Safe to use from several threads: one upload runs at a time."""

    def __init__(self, store: Store, spool: Spool) -> None:
        self._store = store
        self._spool = spool
        self._running = threading.Lock()
        self._waiting = {
            pack.info.name: pack.info.size for pack in spool.packs() if spool.pack(pack.info.name).exists()
        }

    def add(self, pack: PackInfo) -> None:
        """Take note of a pack that was finished."""
        self._waiting[pack.name] = pack.size

    @property
    def waiting(self) -> int:
        """The bytes that are still to be uploaded."""
        return sum(self._waiting.copy().values())

    def done(self, names: Iterable[bytes]) -> bool:
        """Tell whether all these packs are in the store."""
        return self._waiting.keys().isdisjoint(names)

    def upload(self, names: Collection[bytes] | None = None) -> None:
        """Put the packs of these names, by default all, and drop them from the spool.

        Raises:
            TemporaryError: the store is away; a second call continues.
            IntegrityError: the store has other bytes under the name of a pack.
        """
        with self._running:
            chosen = [name for name in self._waiting.copy() if names is None or name in names]
            for_each(self._put, chosen, threads=TRANSFERS)

    def _put(self, name: bytes) -> None:
        key, path = layout.pack(name), self._spool.pack(name)
        # The name is random, so a pack that exists is ours: its answer was lost, or we died behind it.
        if not self._store.put_if_absent(key, path) and not self._same(key, path):
            raise IntegrityError(f"{self._store.url} holds other bytes at {key} than were uploaded to it")
        del self._waiting[name]
        path.unlink()

    def _same(self, key: str, path: Path) -> bool:
        with path.open("rb") as file:
            offset = 0
            while part := file.read(_PART):
                if self._store.get(key, offset, len(part)) != part:
                    return False
                offset += len(part)
        return not self._store.get(key, offset, 1)
