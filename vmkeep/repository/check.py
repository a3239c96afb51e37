"""Whether all packs are there, and are what was put: a check that reads none.

    index  name, size, CRC-32   =?   listing: size   =?   HEAD: CRC-32, where the service keeps one

It finds what is missing, cut off, or was replaced; not a bit that turned on a disk of the service.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.errors import NotFoundError
from vmkeep.repository import layout
from vmkeep.repository.parallel import for_each
from vmkeep.stores.base import ChecksumStore

if TYPE_CHECKING:
    from vmkeep.repository.committed import CommittedIndex
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
    checksums: int
    """Packs of which the checksum was compared too: both the service and an index know it."""
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


def check_packs(store: Store, committed: CommittedIndex) -> QuickReport:
    """Compare sizes, and checksums where they are known, with what the indexes say.

    Raises:
        AccessError: the credentials may not ask for checksums.
        TemporaryError: the store is away.
    """
    faults = {fault.pack: fault for fault in missing_packs(store, committed)}
    packs = [pack for pack in committed.current().packs if layout.pack(pack.name) not in faults]
    count, differing = _compare(store, packs, committed.checksums())
    together = [*faults.values(), *_still(differing, committed)]
    return QuickReport(len(committed.current().packs), count, tuple(together))


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
        except NotFoundError:
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
