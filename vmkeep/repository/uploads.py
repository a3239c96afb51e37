"""Finished packs from the spool to the store: in the background while more is read, and the rest when asked.

Nobody waits for what happens in the background, so an error there ends nothing: the pack stays in the spool,
and the next one that is finished tries again. What still fails is raised to the caller that needs it there.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from vmkeep.errors import AccessError, IntegrityError
from vmkeep.repository import layout
from vmkeep.repository.parallel import TRANSFERS, for_each
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from vmkeep.repository.index import PackInfo
    from vmkeep.repository.spool import Spool
    from vmkeep.stores.base import Store

_BACKGROUND: Final = 2
"""Packs on their way while more is read: they fill a line, and leave the processors to the reading."""
_PART: Final = 8 * MiB


class Uploads:
    """Puts packs, each once. Safe to use from several threads."""

    def __init__(self, store: Store, spool: Spool) -> None:
        self._store = store
        self._spool = spool
        self._running = threading.Lock()
        self._changed = threading.Condition()
        """Held to look at or change the three below; notified when a pack is put, or could not be."""
        self._waiting = {
            pack.info.name: pack.info.size for pack in spool.packs() if spool.pack(pack.info.name).exists()
        }
        self._taken: set[bytes] = set()
        """Those that a thread puts at this moment."""
        self._stopped = False
        self._background = ThreadPoolExecutor(_BACKGROUND, "vmkeep-upload")

    def add(self, pack: PackInfo) -> None:
        """Take a pack that was finished, and begin to put it."""
        with self._changed:
            self._waiting[pack.name] = pack.size
            if not self._stopped:
                self._background.submit(self._put_those_waiting)

    @property
    def waiting(self) -> int:
        """The bytes that are still to be uploaded."""
        with self._changed:
            return sum(self._waiting.values())

    def done(self, names: Iterable[bytes]) -> bool:
        """Tell whether all these packs are in the store."""
        with self._changed:
            return self._waiting.keys().isdisjoint(names)

    def upload(self, names: Collection[bytes] | None = None) -> None:
        """Return when the packs of these names, by default all, are in the store and dropped from the spool.

        Raises:
            TemporaryError: the store is away; a second call continues.
            IntegrityError: the store has other bytes under the name of a pack.
        """
        with self._running:
            with self._changed:
                chosen = [name for name in self._waiting if names is None or name in names]
            for_each(self._ensure, chosen, threads=TRANSFERS)

    def make_room(self, most: int) -> None:
        """Return when no more than *most* bytes are waiting, and help to get there.

        Raises:
            TemporaryError: the store is away, so they cannot become fewer.
            IntegrityError: as above.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.waiting <= most or self._free() is not None)
                name = self._take() if self.waiting > most else None
            if name is None:
                return
            self._put(name)

    def stop(self) -> None:
        """Begin no more in the background, and return when nothing is on its way there."""
        with self._changed:
            self._stopped = True
        self._background.shutdown(cancel_futures=True)

    def _put_those_waiting(self) -> None:
        # An error ends this call and stays in its future; see the top of this module.
        while not self._stopped and (name := self._take()) is not None:
            self._put(name)

    def _ensure(self, name: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: name not in self._taken)
            if name not in self._waiting:
                return
            self._taken.add(name)
        self._put(name)

    def _take(self) -> bytes | None:
        """Claim the oldest pack that nobody puts; `None`: there is none."""
        with self._changed:
            free = self._free()
            if free is not None:
                self._taken.add(free)
            return free

    def _free(self) -> bytes | None:
        return next((name for name in self._waiting if name not in self._taken), None)

    def _put(self, name: bytes) -> None:
        """Put a pack that was claimed, and drop it from the spool."""
        try:
            key, path = layout.pack(name), self._spool.pack(name)
            # The name is random, so a pack that exists is ours: its answer was lost, or we died behind it.
            if not self._store.put_if_absent(key, path) and not self._same(key, path):
                raise IntegrityError(f"{self._store.url} holds other bytes at {key} than were uploaded to it")
            with self._changed:
                del self._waiting[name]
            path.unlink()
        finally:
            with self._changed:
                self._taken.discard(name)
                self._changed.notify_all()

    def _same(self, key: str, path: Path) -> bool:
        """Tell whether the store has the bytes of *path* under *key*.

        Who may only write (see `roles`) learns the size from a listing. It is enough: nobody else draws the
        name, and an object is there whole or not at all.
        """
        try:
            return self._equal(key, path)
        except AccessError:
            sizes = [info.size for info in self._store.list(key) if info.key == key]
            return sizes == [path.stat().st_size]

    def _equal(self, key: str, path: Path) -> bool:
        with path.open("rb") as file:
            offset = 0
            while part := file.read(_PART):
                if self._store.get(key, offset, len(part)) != part:
                    return False
                offset += len(part)
        return not self._store.get(key, offset, 1)
