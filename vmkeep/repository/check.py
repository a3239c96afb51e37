"""Whether all packs are there, and are what was put: a check that reads none.

    index  name, size, CRC-32   =?   listing: size   =?   HEAD: CRC-32, where the service keeps one

It finds what is missing, cut off, or was replaced; not a bit that turned on a disk of the service.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vmkeep.errors import AccessError, NotFoundError
from vmkeep.repository import layout, scrubbed
from vmkeep.repository.parallel import for_each
from vmkeep.stores.base import ChecksumStore

if TYPE_CHECKING:
    from vmkeep.repository.committed import CommittedIndex
    from vmkeep.repository.crypto import Keys
    from vmkeep.repository.index import PackInfo
    from vmkeep.stores.base import Store

_AT_ONCE: Final = 16
"""Small requests, which wait for the service and for nothing else."""


@dataclass(frozen=True, slots=True)
class PackFault:
    """A pack that is not as the index says."""

    pack: str
    """Its key."""
    expected: int
    """Bytes."""
    found: int | None
    """`None`: it is missing. As many as expected: its checksum is another."""


@dataclass(frozen=True, slots=True)
class QuickReport:
    """What a check that reads nothing found."""

    packs: int
    """Packs that were compared."""
    of: int
    """Packs in the repository, of each of which the size was compared."""
    checksums: int
    """Packs of which the checksum was compared too: an index knows it, and the service tells it to us."""
    oldest: datetime | None
    """When the pack was compared that was not for the longest time now; `None`: one never was."""
    faults: tuple[PackFault, ...]


def missing_packs(store: Store, committed: CommittedIndex) -> list[PackFault]:
    """Return the packs of committed sessions that are missing or have another size."""
    before = committed.refresh().packs
    sizes = {info.key: info.size for info in store.list(layout.PACKS)}
    faults = {
        pack.name: PackFault(layout.pack(pack.name), pack.size, sizes.get(layout.pack(pack.name)))
        for pack in before
        if sizes.get(layout.pack(pack.name)) != pack.size
    }
    return _still(faults, committed)


def check_packs(
    store: Store, keys: Keys, committed: CommittedIndex, *, share: float = 1.0, now: datetime | None = None
) -> QuickReport:
    """Compare all sizes, and a *share* (0 to 1) of checksums where they are known, with what the indexes say.

    Those first that were not compared for the longest time; it is remembered which.

    Args:
        now: the time that is remembered; by default the machine's clock.

    Raises:
        TemporaryError: the store is away.
    """
    faults = {fault.pack: fault for fault in missing_packs(store, committed)}
    packs = committed.current().packs
    when = now or datetime.now(UTC)
    times = scrubbed.read(store, keys, when, kind=scrubbed.QUICK)
    chosen = scrubbed.longest_unchecked(packs, times, share)
    whole = [pack for pack in chosen if layout.pack(pack.name) not in faults]
    count, differing = _compare(store, whole, committed.checksums())
    together = (*faults.values(), *_still(differing, committed))
    there = {pack.name for pack in packs}
    times = {name: time for name, time in times.items() if name in there}
    times |= dict.fromkeys((pack.name for pack in chosen), when)
    with contextlib.suppress(AccessError):  # a writer may not remember, and looks at all again
        scrubbed.remember(store, keys, times, when, kind=scrubbed.QUICK)
    oldest = min(times.values(), default=None) if times.keys() >= there else None
    return QuickReport(len(chosen), len(packs), count, oldest, together)


def _compare(
    store: Store, packs: list[PackInfo], known: dict[bytes, int]
) -> tuple[int, dict[bytes, PackFault]]:
    """Return of how many packs both sides know the checksum, and where these differ."""
    found: dict[bytes, PackFault] = {}
    compared: set[bytes] = set()
    lock = threading.Lock()
    if not isinstance(store, ChecksumStore):
        return 0, found

    def look(pack: PackInfo) -> None:
        key = layout.pack(pack.name)
        try:
            theirs = store.crc32(key)
        except (NotFoundError, AccessError):  # who may only write sees sizes, and no more
            theirs = None
        with lock:
            if theirs is not None:
                compared.add(pack.name)
            if theirs not in {None, known[pack.name]}:
                found[pack.name] = PackFault(key, pack.size, pack.size)

    for_each(look, (pack for pack in packs if pack.name in known), threads=_AT_ONCE)
    return len(compared), found


def _still(faults: dict[bytes, PackFault], committed: CommittedIndex) -> list[PackFault]:
    """Leave out what was collected in between: it is no fault."""
    still = {pack.name for pack in committed.refresh().packs} if faults else set()
    return [fault for name, fault in faults.items() if name in still]
