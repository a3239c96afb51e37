"""Whether all packs are there: a check that reads none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.repository import layout

if TYPE_CHECKING:
    from vmkeep.repository.committed import CommittedIndex
    from vmkeep.stores.base import Store


@dataclass(frozen=True, slots=True)
class PackFault:
    """A pack that is not as the index says."""

    pack: str
    """Its key."""
    expected: int
    """Bytes."""
    found: int | None
    """`None`: it is missing."""


def missing_packs(store: Store, committed: CommittedIndex) -> list[PackFault]:
    """Return the packs of committed sessions that are missing or have another size."""
    before = committed.refresh().packs
    sizes = {info.key: info.size for info in store.list(layout.PACKS)}
    faults = {
        pack.name: PackFault(layout.pack(pack.name), pack.size, sizes.get(layout.pack(pack.name)))
        for pack in before
        if sizes.get(layout.pack(pack.name)) != pack.size
    }
    # Asked again: what was collected in between is no fault.
    still = {pack.name for pack in committed.refresh().packs} if faults else set()
    return [fault for name, fault in faults.items() if name in still]
