"""The records of collections, which let writers, readers and other collectors work meanwhile.

gc/<n>/condemned   packs that nothing kept seems to need: nothing new may count on them
gc/<n>/waiting     who was in the repository after that was published
gc/<n>/verdict     which of them are deleted: decided once, the others are spared
gc/<n>/done        they are gone, and no index mentions them, or a later verdict tells of them
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmkeep.repository import layout, sealed
from vmkeep.repository.records import from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import Store

CONDEMNED: Final = "condemned"
_WAITING: Final = "waiting"
_VERDICT: Final = "verdict"
_DONE: Final = "done"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a collection deletes."""

    packs: frozenset[bytes]
    carried: frozenset[bytes] = frozenset()
    """Packs that earlier collections deleted and that an index still mentions."""
    absorbs: frozenset[str] = frozenset()
    """The collections whose verdicts it so replaces."""

    @property
    def dead(self) -> frozenset[bytes]:
        """All packs that nobody may count on."""
        return self.packs | self.carried


class Collections:
    """Reads and writes the records of collections. Safe to use from several threads.

    The objects never change, so each is read once.
    """

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys
        self._read: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def under_way(self) -> dict[str, bool]:
        """Return the collections that are not done, oldest first, and whether each has its verdict."""
        parts: dict[str, set[str]] = defaultdict(set)
        for info in self._store.list(layout.COLLECTIONS):
            number, _, part = info.key.removeprefix(layout.COLLECTIONS).partition("/")
            parts[number].add(part)
        return {
            number: _VERDICT in there
            for number, there in sorted(parts.items())
            if CONDEMNED in there and _DONE not in there
        }

    def pending(self, *, but: str | None = None) -> frozenset[bytes]:
        """Return the packs whose fate is open: they may be deleted at any moment.

        Args:
            but: leave out what this collection condemned.
        """
        return frozenset[bytes]().union(
            *(
                self.condemned(number)
                for number, decided in self.under_way().items()
                if not decided and number != but
            )
        )

    def dead(self) -> frozenset[bytes]:
        """Return the packs that are deleted, or about to be, although an index may mention them."""
        return frozenset[bytes]().union(
            *(self.verdict(number).dead for number, decided in self.under_way().items() if decided)
        )

    def condemn(self, number: str, packs: Iterable[bytes]) -> None:
        """Publish a new collection."""
        self._put(number, CONDEMNED, {"packs": _texts(packs)})

    def condemned(self, number: str) -> frozenset[bytes]:
        """Return what a collection may delete."""
        return _names(self._get(number, CONDEMNED)["packs"])

    def wait_for(self, number: str, sessions: Iterable[str]) -> frozenset[str]:
        """Note who is in the repository, unless that was noted before; return whom to wait for."""
        self._put(number, _WAITING, {"sessions": sorted(sessions)})
        return frozenset(self._get(number, _WAITING)["sessions"])

    def decide(self, number: str, verdict: Verdict) -> Verdict:
        """Put the verdict unless there is one, and return the one that stands."""
        self._put(
            number,
            _VERDICT,
            {
                "packs": _texts(verdict.packs),
                "carried": _texts(verdict.carried),
                "absorbs": sorted(verdict.absorbs),
            },
        )
        return self.verdict(number)

    def verdict(self, number: str) -> Verdict:
        """Return the verdict of a collection that has one."""
        record = self._get(number, _VERDICT)
        return Verdict(_names(record["packs"]), _names(record["carried"]), frozenset(record["absorbs"]))

    def close(self, number: str) -> None:
        """Let nobody read the collection any more."""
        self._put(number, _DONE, {})

    def _put(self, number: str, part: str, record: object) -> None:
        key = layout.collection(number, part)
        self._store.put_if_absent(key, sealed.seal(self._keys, part, key, to_json(record)))

    def _get(self, number: str, part: str) -> dict[str, Any]:
        key = layout.collection(number, part)
        with self._lock:
            record = self._read.get(key)
        if record is None:
            record = from_json(sealed.unseal(self._keys, part, key, self._store.get(key)), key)
            with self._lock:
                self._read[key] = record
        return record


def _texts(packs: Iterable[bytes]) -> list[str]:
    return sorted(name.hex() for name in packs)


def _names(texts: Iterable[str]) -> frozenset[bytes]:
    return frozenset(map(bytes.fromhex, texts))
