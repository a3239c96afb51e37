"""Read packs back, those first that were not read for the longest time, and say what damage concerns.

    pack    every record: authentic, whole, and of its id; every chunk that an index says is there
    point   every leaf is there, and an index knows every chunk below it

A restore reads one recovery point; this finds what time did to all of them, a share of it each night.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from vmkeep.errors import IntegrityError
from vmkeep.repository import scrubbed
from vmkeep.repository.mark import live_chunks
from vmkeep.repository.parallel import TRANSFERS, for_each
from vmkeep.repository.verify import Damage, damages_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmkeep.repository.chunks import Fetched
    from vmkeep.repository.index import Index, Location, PackInfo
    from vmkeep.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """What was read back, and what it found."""

    packs: int
    """Packs that were read."""
    size: int
    """Bytes of these packs."""
    chunks: int
    """Chunks in them."""
    of: int
    """Packs in the repository."""
    oldest: datetime | None
    """When the pack was read that was not read for the longest time now; `None`: one never was."""
    broken: tuple[bytes, ...] = ()
    """Names of packs with damage."""
    damages: tuple[Damage, ...] = ()
    """What of which recovery point is concerned."""
    problems: tuple[str, ...] = ()
    """Damage that concerns a whole recovery point, or no kept one."""

    @property
    def sound(self) -> bool:
        """Whether all that was read is right."""
        return not (self.broken or self.damages or self.problems)


def scrub(
    repository: Repository,
    *,
    share: float = 1.0,
    now: datetime | None = None,
    progress: Callable[[int], None] | None = None,
) -> ScrubReport:
    """Read a *share* (0 to 1) of the bytes of all packs back, and remember which.

    Args:
        now: the time that is remembered; by default the machine's clock.
        progress: told how many bytes were read since the last call, by any thread.

    Raises:
        TemporaryError: the store is away; what was read is forgotten.
    """
    return _Scrub(repository, now or datetime.now(UTC), progress).run(share)


class _Scrub:
    def __init__(self, repository: Repository, now: datetime, progress: Callable[[int], None] | None) -> None:
        self._repository, self._now, self._progress = repository, now, progress
        self._chunks = repository.trees.chunks
        self._lock = threading.Lock()
        self._count = 0
        self._damaged: dict[bytes, str] = {}
        """Chunks that cannot be read, with the reason."""
        self._broken: set[bytes] = set()

    def run(self, share: float) -> ScrubReport:
        repository = self._repository
        index = repository.committed.refresh()
        times = scrubbed.read(repository.store, repository.keys, self._now)
        chosen = scrubbed.longest_unchecked(index.packs, times, share)
        wanted = {pack.name for pack in chosen}
        for_each(self._read, _entries(index, wanted), threads=TRANSFERS)
        there = {pack.name for pack in repository.committed.refresh().packs}
        self._broken &= there  # what was collected meanwhile is no damage
        times = {name: time for name, time in times.items() if name in there}
        times |= dict.fromkeys(wanted & there, self._now)
        scrubbed.remember(repository.store, repository.keys, times, self._now)
        scrubbed.remember_broken(repository.store, repository.keys, self._broken, self._now)
        damages, problems = self._concerned(there)
        return ScrubReport(
            packs=len(chosen),
            size=sum(pack.size for pack in chosen),
            chunks=self._count,
            of=len(there),
            oldest=min(times.values(), default=None) if times.keys() >= there else None,
            broken=tuple(sorted(self._broken)),
            damages=damages,
            problems=problems,
        )

    def _read(self, locations: list[Location]) -> None:
        """Read all chunks of one pack, and its footer."""
        pack = locations[0].pack
        try:
            runs = self._chunks.runs_of(locations)
            for run in runs:
                for fetched in self._chunks.each_of(run, elsewhere=False):
                    self._note(pack, fetched)
            self._chunks.check_footer(pack)
        except IntegrityError:
            with self._lock:
                self._broken.add(pack.name)

    def _note(self, pack: PackInfo, fetched: Fetched) -> None:
        with self._lock:
            self._count += 1
            if fetched.damage is not None:
                self._broken.add(pack.name)
                self._damaged[fetched.id] = str(fetched.damage)
        if self._progress is not None:
            self._progress(len(fetched.data))

    def _concerned(self, there: set[bytes]) -> tuple[tuple[Damage, ...], tuple[str, ...]]:
        """Return what the damage concerns, and points that are damaged as a whole."""
        repository = self._repository
        problems: list[str] = []
        problems += [
            f"the index of session {session} is missing or damaged: 'vmkeep repair' makes it again; "
            "until then nothing is collected"
            for session in sorted(repository.committed.lost)
        ]
        points = repository.points(damaged=lambda info, error: problems.append(f"{info.key}: {error}"))
        index = repository.committed.current()
        # A chunk that lies elsewhere too, whole, is no damage.
        lost = {
            chunk: reason
            for chunk, reason in self._damaged.items()
            if not any(
                copy.pack.name in there and copy.pack.name not in self._broken for copy in index.copies(chunk)
            )
        }
        damages: list[Damage] = []
        for point in points:
            if lost:
                damages += damages_of(point, repository.trees, lost)
                continue
            try:
                live_chunks([point], self._chunks, index)
            except IntegrityError as error:
                problems.append(str(error))
        return tuple(damages), tuple(problems)


def _entries(index: Index, wanted: set[bytes]) -> Iterator[list[Location]]:
    """Yield where the chunks of each wanted pack lie, in order of offset."""
    order = np.lexsort((index.entries["offset"], index.entries["pack"]))
    for number, entries in groupby(order.tolist(), key=lambda at: int(index.entries["pack"][at])):
        pack = index.packs[number]
        if pack.name in wanted:
            yield [index.location(at) for at in entries]
