"""The records that say who is using the repository right now.

A collector lists them: it waits for a session that is alive, and takes the decision of one that is dead.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vmkeep.errors import AccessError, IntegrityError, NotFoundError
from vmkeep.repository import layout, sealed
from vmkeep.repository.committed import decisions
from vmkeep.repository.decision import Decision, decide
from vmkeep.repository.forgotten import forgotten_sessions
from vmkeep.repository.records import from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import Store

_KIND: Final = "open"
_LEFT: Final = ".left"
"""Ends the name of the note that a reader left."""
_STILL: Final = ".still."
"""In the name of a note that a reader is still there, before the time of it as in a session's id."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who is in the repository."""

    session: str
    role: str
    """`writer`, `reader`, or `repacker`."""
    vm: str
    host: str
    begun: datetime
    decision: str
    """The key at which a writer or repacker is decided; empty for a reader."""


def announce_writer(store: Store, keys: Keys, *, session: str, vm: str, run: str) -> None:
    """Say that a session is under way; a second call does nothing."""
    _announce(
        store, keys, {"role": "writer", "session": session, "vm": vm, "run": run,
                      "decision": layout.decision(vm, session)},
    )  # fmt: skip


def announce_repacker(store: Store, keys: Keys, session: str) -> None:
    """Say that packs are being rewritten."""
    _announce(
        store, keys, {"role": "repacker", "session": session, "vm": "", "decision": layout.repacked(session)}
    )


def announce_reader(store: Store, keys: Keys, reader: str, points: Mapping[str, str]) -> None:
    """Say that recovery points (VM to session) are being read; a second call does nothing."""
    reads = {"vm": ", ".join(points), "reads": sorted(points.values())}
    _announce(store, keys, {"role": "reader", "session": reader, "decision": "", **reads})


def still_reading(store: Store, reader: str, now: datetime) -> None:
    """Say that a reader is still there: it is not taken for dead because it came long ago.

    Its record stays what it is: a collection that waits for it goes on waiting.
    """
    note = f"{reader}{_STILL}{layout.new_session_id(now)}"
    store.put_if_absent(layout.open_record(note), b"")


def leave_reading(store: Store, reader: str) -> None:
    """Say that a reader needs nothing any more."""
    for note in _notes(_listed(store)).get(reader, ()):
        leave(store, note)
    try:
        store.delete(layout.open_record(reader))
    except AccessError:  # who may only read the repository puts a note instead
        store.put_if_absent(layout.open_record(f"{reader}{_LEFT}"), b"")


def has_left(store: Store, reader: str) -> bool:
    """Tell whether a reader whose record is still there has left."""
    return f"{reader}{_LEFT}" in _listed(store)


def leave(store: Store, session: str) -> None:
    """Remove the record of a session that was decided."""
    # Writers may lack the right to delete; then a collector removes it.
    with contextlib.suppress(AccessError):
        store.delete(layout.open_record(session))


def names(store: Store) -> frozenset[str]:
    """Return the sessions that are open, or were not tidied up."""
    return frozenset(name for name in _listed(store) if _LEFT not in name and _STILL not in name)


def settle(store: Store, keys: Keys, *, now: datetime, dead_after: timedelta) -> tuple[Visitor, ...]:
    """Remove the records of those that are decided or dead, and return who is alive.

    A writer that began more than *dead_after* ago gets VOID as its decision: whatever it does later, nothing
    of it counts. No data depends on whether the clocks are right, only the work of that writer.

    Raises:
        IntegrityError: a record is damaged.
    """
    there = _listed(store)
    notes = _notes(there)
    present = sorted(name for name in there if not name.endswith(_LEFT) and _STILL not in name)
    left = {name.removesuffix(_LEFT) for name in there if name.endswith(_LEFT)}
    orphans = [f"{session}{_LEFT}" for session in left.difference(present)]
    for name in [*orphans, *(note for session in notes.keys() - set(present) for note in notes[session])]:
        leave(store, name)
    if not present:
        return ()
    decided = decisions(store)
    gone = forgotten_sessions(store)
    alive = []
    for session in present:
        visitor = _read(store, keys, session)
        if visitor is None:
            continue
        over = visitor.decision in decided or session in gone or (not visitor.decision and session in left)
        heard = max([visitor.begun, *map(_time_of, notes.get(session, ()))])
        if not over and now - heard < dead_after:
            alive.append(visitor)
            continue
        if not over and visitor.decision:
            _fence(store, keys, visitor)
        for name in (session, *notes.get(session, ()), *([f"{session}{_LEFT}"] if session in left else [])):
            leave(store, name)
    return tuple(alive)


def _notes(there: frozenset[str]) -> dict[str, list[str]]:
    """Return the names of the notes that readers are still there, by reader."""
    found: dict[str, list[str]] = {}
    for name in there:
        reader, still, when = name.partition(_STILL)
        if still and layout.is_session_id(when):
            found.setdefault(reader, []).append(name)
    return found


def _time_of(note: str) -> datetime:
    return layout.time_of_session(note.partition(_STILL)[2])


def _listed(store: Store) -> frozenset[str]:
    return frozenset(info.key.removeprefix(layout.OPEN) for info in store.list(layout.OPEN))


def _fence(store: Store, keys: Keys, writer: Visitor) -> None:
    reason = f"taken for dead: open since {writer.begun.isoformat(timespec='seconds')}"
    decide(store, keys, writer.decision, Decision(secrets.token_hex(16), None, reason))


def _announce(store: Store, keys: Keys, record: Mapping[str, object]) -> None:
    key = layout.open_record(str(record["session"]))
    body = {
        **record,
        "host": platform.node(),
        "process": os.getpid(),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.put_if_absent(key, sealed.seal(keys, _KIND, key, to_json(body)))


def _read(store: Store, keys: Keys, session: str) -> Visitor | None:
    """Return who is open under this name; `None`: it left meanwhile."""
    key = layout.open_record(session)
    try:
        record = from_json(sealed.unseal(keys, _KIND, key, store.get(key)), key)
        return Visitor(
            session,
            record["role"],
            record["vm"],
            record["host"],
            datetime.fromisoformat(record["begun"]),
            record["decision"],
        )
    except NotFoundError:
        return None
    except IntegrityError as error:
        since = (
            f" since {layout.time_of_session(session):%Y-%m-%d %H:%M} UTC"
            if layout.is_session_id(session)
            else ""
        )
        raise IntegrityError(
            f"{error}; it says who is at work{since}: when no vmkeep of that time is any more, "
            "delete that object from the store"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{key} is malformed: {error!r}; nothing was collected") from error
