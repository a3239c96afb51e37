"""Tombstones: recovery points that do not count any more.

A tombstone stays for ever, so that a process that died behind its seal cannot bring its point back; the point
itself is then removed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vmkeep.errors import NotFoundError
from vmkeep.repository import layout, sealed
from vmkeep.repository.records import to_json

if TYPE_CHECKING:
    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import Store

_KIND: Final = "forgotten"


def forget(store: Store, keys: Keys, *, vm: str, session: str, reason: str) -> None:
    """Let a sealed recovery point not count any more; a second call does nothing."""
    key = layout.forgotten(session)
    record = {
        "vm": vm,
        "session": session,
        "reason": reason,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.put_if_absent(key, sealed.seal(keys, _KIND, key, to_json(record)))


def is_forgotten(store: Store, session: str) -> bool:
    """Tell whether the session's point was forgotten."""
    try:
        store.get(layout.forgotten(session))
    except NotFoundError:
        return False
    return True


def forgotten_sessions(store: Store) -> frozenset[str]:
    """Return the sessions whose points were forgotten."""
    return frozenset(info.key.removeprefix(layout.FORGOTTEN) for info in store.list(layout.FORGOTTEN))
