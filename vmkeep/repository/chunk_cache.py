"""Chunks that were read lately, within a bound; nobody fetches what somebody else is fetching already.

Readers ask for what they need now, and wait. What they will probably need next is fetched ahead of them by a
few threads, in runs: chunks that lie beside each other in a pack cost one request.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from vmkeep.errors import VmkeepError
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vmkeep.repository.chunks import Chunks, Fetched
    from vmkeep.repository.crypto import Buffer

CAPACITY: Final = 64 * MiB
AHEAD: Final = 4
"""Fetches ahead at the same time; what would be one more is not begun."""


class ChunkCache:
    """Safe to use from several threads.

    In memory are *capacity* bytes of chunks, and what is being fetched: by readers, and by `AHEAD` threads.
    """

    def __init__(self, chunks: Chunks, *, capacity: int = CAPACITY) -> None:
        self._chunks = chunks
        self._capacity = capacity
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Buffer] = OrderedDict()
        self._size = 0
        self._coming: dict[bytes, Future[Buffer]] = {}
        self._pool = ThreadPoolExecutor(AHEAD, "vmkeep-ahead")
        self._free = threading.Semaphore(AHEAD)

    def get(self, ids: Iterable[bytes]) -> dict[bytes, Buffer]:
        """Return the bytes of chunks by id, each of which has the id that it should have.

        Raises:
            IntegrityError: one is missing or damaged.
            TemporaryError: the store is away.
        """
        found: dict[bytes, Buffer] = {}
        wanted: dict[bytes, Future[Buffer]] = {}
        ours: dict[bytes, Future[Buffer]] = {}
        with self._lock:
            for name in dict.fromkeys(ids):
                if name in self._kept:
                    self._kept.move_to_end(name)
                    found[name] = self._kept[name]
                    continue
                if name not in self._coming:
                    ours[name] = self._coming[name] = Future()
                wanted[name] = self._coming[name]
        self._fetch(ours)
        for name, future in wanted.items():
            found[name] = future.result()
        return found

    def ahead(self, ids: Callable[[], Iterable[bytes]]) -> None:
        """Fetch chunks in the background, if somebody is free to do it; returns at once.

        Args:
            ids: Called there to learn which; what fails is forgotten, and fails again for whoever needs it.
        """
        if self._free.acquire(blocking=False):
            try:
                self._pool.submit(self._fetch_ahead, ids)
            except RuntimeError:
                self._free.release()  # closed meanwhile

    def close(self) -> None:
        """Forget all chunks; returns when nothing is fetched ahead any more."""
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            self._kept.clear()
            self._size = 0

    def _fetch_ahead(self, ids: Callable[[], Iterable[bytes]]) -> None:
        try:
            with contextlib.suppress(VmkeepError):
                wanted = dict.fromkeys(ids())
                with self._lock:
                    new = [one for one in wanted if one not in self._kept and one not in self._coming]
                    ours: dict[bytes, Future[Buffer]] = {one: Future() for one in new}
                    self._coming.update(ours)
                self._fetch(ours)
        finally:
            self._free.release()

    def _fetch(self, ours: Mapping[bytes, Future[Buffer]]) -> None:
        """Fetch chunks that others may wait for: they are told, whatever happens."""

        def use(fetched: Fetched) -> None:
            with self._lock:
                del self._coming[fetched.id]
                if fetched.damage is None:
                    self._keep(fetched.id, fetched.data)
            if fetched.damage is None:
                ours[fetched.id].set_result(fetched.data)
            else:
                ours[fetched.id].set_exception(fetched.damage)

        try:
            if ours:
                self._chunks.fetch(ours, use)
        except BaseException as error:
            # What came before the error may have been dropped, and be somebody else's to fetch by now.
            left = {name: future for name, future in ours.items() if not future.done()}
            with self._lock:
                for name in left:
                    del self._coming[name]
            for future in left.values():
                future.set_exception(error)
            if not isinstance(error, VmkeepError):
                raise

    def _keep(self, name: bytes, data: Buffer) -> None:
        self._kept[name] = data
        self._size += len(data)
        while self._size > self._capacity:
            _, oldest = self._kept.popitem(last=False)
            self._size -= len(oldest)
