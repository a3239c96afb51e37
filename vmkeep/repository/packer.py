"""Chunks into packs: what the repository has already is not stored again."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.errors import TemporaryError
from vmkeep.repository.codec import compress
from vmkeep.repository.pack import PackWriter
from vmkeep.repository.spool import spooling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmkeep.repository.crypto import Buffer, EpochKeys, Keys
    from vmkeep.repository.index import Index, PackInfo
    from vmkeep.repository.pack import FinishedPack
    from vmkeep.repository.spool import Spool

_BEHIND: Final = 1
"""Full packs that may wait for the disk while chunks go on into the next one."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A chunk that the repository has now."""

    id: bytes
    stored: int
    """What it took, in bytes; 0: the repository had it already."""


class Packer:
    """Stores chunks in packs in the spool. Safe to use from several threads.

    Args:
        known: the chunks that committed sessions have stored.
        most: the largest size of a pack, in bytes.
        finished: called with each pack that is finished, by a thread of the packer's own; what it raises is
            raised by the next call.
    """

    def __init__(
        self,
        keys: Keys,
        spool: Spool,
        known: Index,
        *,
        most: int,
        finished: Callable[[PackInfo], None],
    ) -> None:
        self.packs: dict[bytes, FinishedPack] = {pack.info.name: pack for pack in spool.packs()}
        """The finished packs of this session by name."""
        # One epoch for all: what this session stored is found by the ids of the same keys.
        self._keys = self._names = keys.newest
        self._spool = spool
        self._known = known
        self._most = most
        self._finished = finished
        self._new = {entry.tobytes() for pack in self.packs.values() for entry in pack.entries["id"]}
        self._current: PackWriter | None = None
        self._finishing = 0
        self._failure: BaseException | None = None
        self._untold: BaseException | None = None
        self._changed = threading.Condition()
        # Waiting for stable storage is not work: those who compress need not do it.
        self._finisher = ThreadPoolExecutor(1, "vmkeep-pack")

    def has(self, chunk: bytes) -> bool:
        """Tell whether the chunk is stored, by this session or one that committed before it began."""
        return chunk in self._new or chunk in self._known

    def name_by(self, keys: EpochKeys) -> None:
        """Give chunks the ids of this data epoch from now on, to store again what was lost of it."""
        self._names = keys

    def put(self, data: Buffer, chunk: bytes | None = None) -> Stored:
        """Store a chunk unless it is there.

        Args:
            chunk: its id, where that is known already.

        Raises:
            TemporaryError: the spool's disk is full, now or earlier: the session must be resumed.
        """
        chunk = chunk or self._names.chunk_id(data)
        if self.has(chunk):
            return Stored(chunk, 0)
        body, codec = compress(data)
        with self._changed:
            # All threads wait here, not only the one that filled a pack: no third pack is begun.
            self._changed.wait_for(lambda: self._finishing <= _BEHIND)
            self._check()
            if chunk in self._new:  # another thread was faster
                return Stored(chunk, 0)
            with self._failing():
                if self._current is None:
                    self._current = PackWriter(self._keys, self._spool.new_pack())
                stored = self._current.append(chunk, body, len(data), codec)
            self._new.add(chunk)
            if self._current.full(self._most):
                self._finisher.submit(self._finish_behind, self._take(self._current))
        return Stored(chunk, stored)

    def flush(self) -> None:
        """Return when everything stored so far is in finished packs, on stable storage.

        Raises:
            TemporaryError: as above.
        """
        with self._changed:
            self._check()
            last = self._take(self._current) if self._current is not None else None
        if last is not None:
            self._finish(last)
        with self._changed:
            self._changed.wait_for(lambda: not self._finishing)
            self._check()

    def abandon(self) -> None:
        """Drop the pack that is not finished; nothing can be stored any more."""
        with self._changed:
            if self._current is not None:
                self._current.abandon()
                self._current = None
            self._failure = self._failure or TemporaryError("the session was closed")
        self._finisher.shutdown()

    def _take(self, pack: PackWriter) -> PackWriter:
        self._current = None
        self._finishing += 1
        return pack

    def _finish_behind(self, writer: PackWriter) -> None:
        try:
            self._finish(writer)
        except BaseException as error:  # noqa: BLE001  (raised by whoever stores next)
            with self._changed:
                self._untold = self._untold or error

    def _finish(self, writer: PackWriter) -> None:
        # Outside the lock: the disk takes its time, and other threads fill the next pack meanwhile.
        try:
            with self._failing(), _abandoning(writer):
                pack = writer.finish()
                self._spool.keep_pack(writer.path, pack)
            with self._changed:
                self.packs[pack.info.name] = pack
            self._finished(pack.info)
        finally:
            with self._changed:
                self._finishing -= 1
                self._changed.notify_all()

    def _check(self) -> None:
        if self._untold is not None:
            error, self._untold = self._untold, None
            raise error
        if self._failure is not None:
            raise TemporaryError(
                f"the spool failed earlier ({self._failure}); begin the session again to continue it"
            ) from self._failure

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Remember an error: chunks are lost that other components may count on already."""
        try:
            with spooling(self._spool.folder / "packs"):
                yield
        except BaseException as error:
            self._failure = self._failure or error
            raise


@contextlib.contextmanager
def _abandoning(writer: PackWriter) -> Iterator[None]:
    """Close the file when the block fails, and remove it: nothing that is half stays, nor is held open."""
    try:
        yield
    except BaseException:
        writer.abandon()
        raise
