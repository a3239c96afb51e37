"""Which packs are needed: of every chunk that a kept recovery point needs, one copy.

A chunk lies in two packs when two sessions stored it at the same time, or when a sparse pack was rewritten.
The copy of the newest session is the one that is needed, so that the others go; but no copy in a pack that is
not there, cut off, or known to be damaged, as long as there is another. Two collections must not
delete both, each counting on the other's: none counts on a pack that another has condemned. Whoever condemns
later sees what was condemned before, so the last of them all spares the copy that it counts on.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np

from vmkeep.errors import IntegrityError, NotFoundError
from vmkeep.repository import layout, scrubbed
from vmkeep.repository.committed import list_points
from vmkeep.repository.mark import live_chunks
from vmkeep.repository.pack import RECORD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from vmkeep.repository.committed import PointInfo
    from vmkeep.repository.index import Index, Location
    from vmkeep.repository.mark import Live
    from vmkeep.repository.repository import Repository

_LAST: Final = -1
"""The rank of a pack that is only counted on where there is no other."""


@dataclass(frozen=True, slots=True)
class Needed:
    """The chunks that are needed, each in one pack, or in several where that may be safer."""

    index: Index
    entries: NDArray[np.bool_]
    """Which entries of the index these are."""
    sessions: Mapping[bytes, str]
    """By pack, the session that stored it; what is not known here is old."""

    @property
    def packs(self) -> frozenset[bytes]:
        """The names of the packs that hold a needed chunk."""
        used = np.unique(self.index.entries["pack"][self.entries])
        return frozenset(self.index.packs[int(number)].name for number in used)

    def sparse(self, below: float, *, before: int = 0) -> Iterator[tuple[list[Location], int]]:
        """Yield the needed chunks of each pack of whose bytes less than *below* (0 to 1) are needed.

        Packs of which nothing is needed are left out.

        Args:
            before: those of earlier data epochs than this one are rewritten, however much of them is needed.

        Yields:
            The chunks in order of offset, and the bytes that they take in the pack.
        """
        entries = self.index.entries
        sizes = entries["stored"].astype(np.int64) + RECORD.size
        all_of = np.bincount(entries["pack"], sizes, len(self.index.packs))
        needed = np.bincount(entries["pack"], sizes * self.entries, len(self.index.packs))
        old = np.array([pack.epoch < before for pack in self.index.packs], bool)
        chosen = (needed > 0) & ((needed < below * all_of) | old)
        rows = np.flatnonzero(self.entries & chosen[entries["pack"]])
        rows = rows[np.lexsort((entries["offset"][rows], entries["pack"][rows]))]
        for pack, part in groupby(rows.tolist(), key=lambda at: int(entries["pack"][at])):
            yield [self.index.location(at) for at in part], int(needed[pack])


def choose(live: Live, sessions: Mapping[bytes, str], fate_open: frozenset[bytes]) -> Needed:
    """Return which copies of the *live* chunks are needed.

    Args:
        sessions: by pack, the session that stored it.
        fate_open: packs that others may delete at any moment, or which may not be whole.
    """
    index = live.index
    order = sorted(
        range(len(index.packs)), key=lambda at: (sessions.get(index.packs[at].name, ""), index.packs[at].name)
    )
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    rank[[pack.name in fate_open for pack in index.packs]] = _LAST
    entries = live.entries.copy()
    rows = _alike(index, np.flatnonzero(live.entries))
    if rows.size:
        ranks = rank[index.entries["pack"][rows]]
        ids = np.ascontiguousarray(index.entries["id"][rows]).view(">u8").reshape(-1, 4)
        at = np.lexsort((ranks, *ids.T))
        rows, ranks, ids = rows[at], ranks[at], ids[at]
        ends = np.flatnonzero(np.append((ids[1:] != ids[:-1]).any(axis=1), True))
        counts = np.diff(ends, prepend=-1)
        best = np.repeat(ranks[ends], counts)
        entries[rows[(best != _LAST) & (ranks != best)]] = False
    return Needed(index, entries, sessions)


def _alike(index: Index, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return those of *rows* whose ids begin like that of another row; they are sorted by that."""
    prefixes = np.ascontiguousarray(index.entries["id"][rows, :8]).view(">u8").ravel()
    same = prefixes[1:] == prefixes[:-1]
    return rows[np.append(same, False) | np.append(False, same)] if rows.size else rows


class Survey:
    """Finds what is needed, as often as asked; what was read is remembered while points stay the same."""

    def __init__(self, repository: Repository, *, without: frozenset[str] = frozenset()) -> None:
        """Take sessions in *without* for forgotten."""
        self._repository = repository
        self._without = without
        self._seen: tuple[list[PointInfo], Live] | None = None

    def needed(self, *, but: str | None = None) -> Needed:
        """Return what the recovery points need that are kept now.

        Args:
            but: the collection that asks: what it condemned itself, it may count on.

        Raises:
            IntegrityError: something of a kept point is missing or damaged.
            TemporaryError: the store is away.
        """
        committed = self._repository.committed
        # First: what is decided in between is found among the dead, which the index leaves out.
        fate_open = committed.collections.pending(but=but)
        live, sessions = self._live()
        return choose(live, sessions, fate_open | self._doubtful(live.index))

    def _doubtful(self, index: Index) -> frozenset[bytes]:
        """Return the packs that are not there as they should be, or in which damage was found."""
        store = self._repository.store
        # Behind the index: all that it knows was put before.
        there = {layout.pack_name(info.key): info.size for info in store.list(layout.PACKS)}
        wrong = {pack.name for pack in index.packs if there.get(pack.name) != pack.size}
        return frozenset(wrong | scrubbed.broken(store, self._repository.keys))

    def _live(self) -> tuple[Live, Mapping[bytes, str]]:
        repository, committed = self._repository, self._repository.committed
        while True:
            points = list_points(repository.store)
            index = committed.refresh()  # behind the points: it knows all their chunks
            sessions = committed.sessions()
            try:
                _require_all_indexes(committed.lost)
                if self._seen is not None and self._seen[0] == points:
                    live = self._seen[1].among(index)
                else:
                    kept = (repository.load(info) for info in points if info.session not in self._without)
                    live = live_chunks(kept, repository.trees.chunks, index)
            except (IntegrityError, NotFoundError):
                # Another collector may have deleted already what was forgotten since it was listed.
                if list_points(repository.store) == points:
                    raise
            else:
                self._seen = points, live
                return live, sessions


def _require_all_indexes(lost: frozenset[str]) -> None:
    if lost:
        raise IntegrityError(
            f"the indexes of sessions {', '.join(sorted(lost)[:5])} are missing or damaged: nothing was "
            "collected, for what they describe may be needed; 'vmkeep repair' makes them again"
        )
