"""The records that say who is using the repository right now.

A collector lists them: it waits for a session that is alive, and takes the decision of one that is dead.
"""

from __future__ import annotations

import contextlib
import os
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkeep.errors import AccessError
from vmkeep.repository import layout, sealed
from vmkeep.repository.records import to_json

if TYPE_CHECKING:
    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import Store


def announce_writer(store: Store, keys: Keys, *, session: str, vm: str, run: str) -> None:
    """Say that a session is under way; a second call does nothing."""
    record = {
        "role": "writer",
        "session": session,
        "vm": vm,
        "run": run,
        "decision": layout.decision(vm, session),
        "host": platform.node(),
        "process": os.getpid(),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    key = layout.open_record(session)
    store.put_if_absent(key, sealed.seal(keys, "open", key, to_json(record)))


def leave(store: Store, session: str) -> None:
    """Remove the record of a session that was decided."""
    # Writers may lack the right to delete; then a collector removes it.
    with contextlib.suppress(AccessError):
        store.delete(layout.open_record(session))
