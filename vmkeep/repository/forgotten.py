"""Tombstones: recovery points that do not count any more.

A tombstone stays for ever, so that a process that died behind its seal cannot bring its point back; the point
itself is then removed.

    forgotten/<session>[.n]    a tombstone, or that somebody holds the point and nobody may take this place

Who forgets chooses the first free place, looks whether the point is held, and puts the tombstone there. Who
holds it puts the hold, and takes the first free place: so who looked before the hold was there finds the
place taken, and looks again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Final

from vmkeep.repository import layout, sealed
from vmkeep.repository.decision import VOID_SIZE
from vmkeep.repository.records import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import ObjectInfo, Store

_KIND: Final = "forgotten"
_TAKEN_SIZE: Final = VOID_SIZE
"""Bytes of what takes a place; a listing tells it from a tombstone."""
_LEAST: Final = 512


def forget(  # noqa: PLR0913  (each is a keyword, and none belongs to another)
    store: Store,
    keys: Keys,
    *,
    vm: str,
    session: str,
    reason: str,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Let a sealed recovery point not count any more; a second call does nothing.

    Args:
        check: called before, and again when the point was held meanwhile; raises if it must stay.
    """
    record = {
        "vm": vm,
        "session": session,
        "reason": reason,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    while (place := _free_place(store, session)) is not None:
        check()
        if store.put_if_absent(place, sealed.seal(keys, _KIND, place, to_json(record), size=_LEAST)):
            return


def prevent(store: Store, keys: Keys, session: str) -> bool:
    """Let nobody forget the point who did not look from now on whether it is held; false: it is gone."""
    while (place := _free_place(store, session)) is not None:
        if store.put_if_absent(place, sealed.seal(keys, _KIND, place, b"{}", size=_TAKEN_SIZE)):
            return True
    return False


def is_forgotten(store: Store, session: str) -> bool:
    """Tell whether the session's point was forgotten."""
    return session in _with_tombstone(store.list(layout.forgotten(session)))


def forgotten_sessions(store: Store) -> frozenset[str]:
    """Return the sessions whose points were forgotten."""
    return _with_tombstone(store.list(layout.FORGOTTEN))


def _free_place(store: Store, session: str) -> str | None:
    """Return the key of the first place that is free; `None`: there is a tombstone."""
    there = [*store.list(layout.forgotten(session))]
    if session in _with_tombstone(there):
        return None
    taken = {info.key for info in there}
    return next(place for part in count(1) if (place := layout.forgotten(session, part)) not in taken)


def _with_tombstone(listed: Iterable[ObjectInfo]) -> frozenset[str]:
    return frozenset(
        info.key.removeprefix(layout.FORGOTTEN).partition(".")[0]
        for info in listed
        if info.size != _TAKEN_SIZE
    )
