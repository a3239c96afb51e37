"""Chunks out of packs: found in the index, read in long runs, and never returned unless their id is right."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.errors import IntegrityError, NotFoundError
from vmkeep.repository import layout
from vmkeep.repository.pack import RECORD, TRAILER, PackReader, footer_length
from vmkeep.repository.parallel import READS, for_each
from vmkeep.units import KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmkeep.repository.crypto import Buffer, Keys
    from vmkeep.repository.index import Index, Location, PackInfo
    from vmkeep.stores.base import Store

_RUN: Final = 8 * MiB
"""The longest range that is read at once."""
_GAP: Final = 256 * KiB
"""What lies between two chunks is read along when it is shorter: a request costs more."""
_READERS: Final = 64


@dataclass(frozen=True, slots=True)
class Fetched:
    """A chunk that was read, or why it could not be."""

    id: bytes
    data: Buffer
    damage: IntegrityError | None = None


class Chunks:
    """Reads chunks. Safe to use from several threads.

    Args:
        index: returns the index; asked with `True` when a chunk is not in it, for a newer or wider one.
    """

    def __init__(self, store: Store, keys: Keys, index: Callable[[bool], Index]) -> None:
        self._store = store
        self._keys = keys
        self._index = index
        self._packs: OrderedDict[bytes, PackReader] = OrderedDict()
        self._lock = threading.Lock()

    def is_id(self, chunk: bytes, data: Buffer) -> bool:
        """Tell whether *data* is the chunk of that id, by the keys of any data epoch."""
        return self._keys.is_id(chunk, data, self._keys.newest.epoch)

    def locate(self, chunk: bytes) -> Location:
        """Return where a chunk lies.

        Raises:
            IntegrityError: no index knows it.
        """
        found = self._index(False).locate(chunk) or self._index(True).locate(chunk)
        if found is None:
            raise IntegrityError(f"chunk {chunk.hex()} is missing: no index says where it lies")
        return found

    def get(self, chunk: bytes) -> Buffer:
        """Return the bytes of one chunk.

        Raises:
            IntegrityError: it is missing or damaged; the message names pack and chunk.
        """
        (fetched,) = self.each_of([self.locate(chunk)])
        if fetched.damage is not None:
            raise fetched.damage
        return fetched.data

    def runs(self, chunks: Iterable[bytes]) -> tuple[list[list[Location]], list[Fetched]]:
        """Return *chunks* as runs that are read at once, and those that are missing.

        Each run is a part of one pack, in order of offset.
        """
        found: list[Location] = []
        missing: list[Fetched] = []
        for chunk in chunks:
            try:
                found.append(self.locate(chunk))
            except IntegrityError as error:
                missing.append(Fetched(chunk, b"", error))
        found.sort(key=lambda each: (each.pack.name, each.offset))
        return self.runs_of(found), missing

    def runs_of(self, locations: Iterable[Location]) -> list[list[Location]]:
        """Return *locations*, which are in the order of packs and offsets, as runs that are read at once."""
        runs: list[list[Location]] = []
        for each in locations:
            if runs and _adjoins(runs[-1], each):
                runs[-1].append(each)
            else:
                runs.append([each])
        return runs

    def check_footer(self, pack: PackInfo) -> None:
        """Read the end of a pack, which tells what is in it when its index is lost.

        Raises:
            IntegrityError: it is damaged, or missing.
        """
        try:
            length = footer_length(self._store.get(layout.pack(pack.name), pack.size - TRAILER.size))
            start = pack.size - length - TRAILER.size
            self._reader(pack).footer(self._store.get(layout.pack(pack.name), max(0, start)))
        except NotFoundError:
            raise IntegrityError(f"pack {pack.name.hex()} is missing") from None

    def each_of(self, run: Sequence[Location], *, elsewhere: bool = True) -> Iterator[Fetched]:
        """Read one run, and yield its chunks; damage is yielded, not raised.

        Args:
            elsewhere: look for the chunks of a pack that is gone, and for damaged ones, in others.

        Raises:
            TemporaryError: the store is away.
        """
        first, last = run[0], run[-1]
        length = last.offset + RECORD.size + last.stored - first.offset
        try:
            reader = self._reader(first.pack)
            view = memoryview(self._store.get(layout.pack(first.pack.name), first.offset, length))
        except NotFoundError:
            for each in run:
                gone = _gone(each)
                yield self._in_another_pack(gone, each.pack, newer=True) if elsewhere else gone
            return
        for each in run:
            at = each.offset - first.offset
            try:
                yield Fetched(each.id, reader.chunk(view[at : at + RECORD.size + each.stored], each))
            except IntegrityError:
                fetched = self._once_more(reader, each)
                if fetched.damage is not None and elsewhere:
                    fetched = self._in_another_pack(fetched, each.pack, newer=False)
                yield fetched

    def fetch(self, chunks: Iterable[bytes], use: Callable[[Fetched], object]) -> None:
        """Read all *chunks* with several threads, and call *use* from these with each of them.

        Raises:
            TemporaryError: the store is away.
        """
        runs, missing = self.runs(chunks)
        for each in missing:
            use(each)

        def read(run: list[Location]) -> None:
            for fetched in self.each_of(run):
                use(fetched)

        for_each(read, runs, threads=READS)

    def _once_more(self, reader: PackReader, location: Location) -> Fetched:
        """Read one chunk again: it may have been damaged on its way, and be whole in the store."""
        length = RECORD.size + location.stored
        try:
            record = self._store.get(layout.pack(location.pack.name), location.offset, length)
            return Fetched(location.id, reader.chunk(memoryview(record), location))
        except (IntegrityError, NotFoundError) as error:
            return Fetched(location.id, b"", _damaged(location, str(error)))

    def _in_another_pack(self, unread: Fetched, pack: PackInfo, *, newer: bool) -> Fetched:
        """Return a chunk from another pack that has it, the newest first; if there is none, as it is.

        A chunk whose pack was collected was stored anew since, if it is needed; one that was damaged was
        stored again by a repair.

        Args:
            newer: look into what was committed since the index was loaded.
        """
        for other in reversed(self._index(newer).copies(unread.id)):
            if other.pack.name != pack.name:
                (fetched,) = self.each_of([other], elsewhere=False)
                if fetched.damage is None:
                    return fetched
        return unread

    def _reader(self, pack: PackInfo) -> PackReader:
        with self._lock:
            reader = self._packs.pop(pack.name, None) or PackReader(self._keys, pack)
            self._packs[pack.name] = reader
            if len(self._packs) > _READERS:
                self._packs.popitem(last=False)
            return reader


def _adjoins(run: Sequence[Location], other: Location) -> bool:
    first, last = run[0], run[-1]
    return (
        other.pack.name == first.pack.name
        and other.offset - last.offset - last.stored - RECORD.size <= _GAP
        and other.offset + other.stored + RECORD.size - first.offset <= _RUN
    )


def _gone(location: Location) -> Fetched:
    return Fetched(location.id, b"", _damaged(location, "the pack is missing"))


def _damaged(location: Location, problem: str) -> IntegrityError:
    return IntegrityError(
        f"chunk {location.id.hex()} in pack {location.pack.name.hex()} at {location.offset}: {problem}"
    )
