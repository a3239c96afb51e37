"""The one decision of a session: its recovery point, or VOID; of one that rewrites packs, that they count.

All are put at the same key, and only if it is absent, so that of a writer that seals and a collector
that fences it exactly one wins. A VOID is told by its size alone, so a listing shows what counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.repository import sealed
from vmkeep.repository.records import decode_point, encode_point, from_json, to_json

if TYPE_CHECKING:
    from vmkeep.repository.crypto import Keys
    from vmkeep.repository.manifest import Point
    from vmkeep.stores.base import Store

VOID_SIZE: Final = 256
"""Bytes of every VOID."""
_LEAST: Final = 512
"""No other decision is as small as a VOID."""
_REASON_MOST: Final = 100
_KIND: Final = "decision"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, and by whom."""

    nonce: str
    """Drawn by the one who decided: so it knows its own decision again after a lost answer."""
    point: Point | None
    """`None`: VOID, or a repack."""
    reason: str = ""
    """Why it is VOID."""
    repacked: tuple[str, ...] | None = None
    """The names of the packs that were rewritten; `None`: VOID, or a point."""


def decide(store: Store, keys: Keys, key: str, decision: Decision) -> Decision:
    """Put *decision* at *key* unless there is one, and return the one that stands.

    Raises:
        TemporaryError: the store is away; it may have taken the decision. Call again to find out.
    """
    if store.put_if_absent(key, encode(keys, key, decision)):
        return decision
    return decode(keys, key, store.get(key))


def encode(keys: Keys, key: str, decision: Decision) -> bytes:
    """Return the object at *key*."""
    if decision.point is None and decision.repacked is None:
        reason = decision.reason.encode("ascii", "replace").decode()[:_REASON_MOST]
        void = to_json({"nonce": decision.nonce, "void": reason})
        return sealed.seal(keys, _KIND, key, void, size=VOID_SIZE)
    record: dict[str, object] = {"nonce": decision.nonce}
    if decision.point is not None:
        record["point"] = encode_point(decision.point)
    else:
        record["repacked"] = decision.repacked
    return sealed.seal(keys, _KIND, key, to_json(record), size=_LEAST)


def decode(keys: Keys, key: str, data: bytes) -> Decision:
    """Read the object at *key*.

    Raises:
        IntegrityError: it is damaged.
    """
    record = from_json(sealed.unseal(keys, _KIND, key, data), key)
    if "point" in record:
        return Decision(record["nonce"], decode_point(record["point"]))
    if "repacked" in record:
        return Decision(record["nonce"], None, repacked=tuple(record["repacked"]))
    return Decision(record["nonce"], None, record["void"])
