"""The names of the repository's objects."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from vmkeep.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT: Final = "format"
KEYS: Final = "keys/"
EPOCHS: Final = "keys/epochs/"
OPEN: Final = "open/"
PACKS: Final = "packs/"
INDEX: Final = "index/"
POINTS: Final = "points/"
RUNS: Final = "runs/"
DRILLS: Final = "drills/"
COLLECTIONS: Final = "gc/"
FORGOTTEN: Final = "forgotten/"
HOLDS: Final = "holds/"
RELEASED: Final = ".released"
"""Ends the name of what says that a hold does not count any more."""
REPACKED: Final = "repacked/"
VERIFIED: Final = "verified/"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TICK: Final = timedelta(milliseconds=1)
_SESSION: Final = re.compile(r"\d{8}T\d{9}Z-[0-9a-f]{12}")


def is_name(name: str) -> bool:
    """Tell whether *name* can be part of a key."""
    return _NAME.fullmatch(name) is not None


def check_name(kind: str, name: str) -> str:
    """Return *name* when it can be part of a key.

    Raises:
        InputError: it cannot.
    """
    if not is_name(name):
        raise InputError(f"{name!r} is no name of a {kind}: write letters, digits, '.', '_' and '-'")
    return name


def new_session_id(now: datetime, *, after: Iterable[str] = ()) -> str:
    """Return an id that sorts by time, to the millisecond, and is never drawn twice.

    Args:
        after: ids that it sorts behind, also where a clock is or was not right.
    """
    moment = max([now.astimezone(UTC), *(time_of_session(one) + _TICK for one in after)])
    return f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}Z-{secrets.token_hex(6)}"


def time_of_session(session: str) -> datetime:
    """Return the time that a session's id begins with."""
    return datetime.strptime(session[:18] + "000", "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)


def is_session_id(text: str) -> bool:
    """Tell whether *text* was made by `new_session_id`."""
    return _SESSION.fullmatch(text) is not None


def key_slot(slot: str, epoch: str = "") -> str:
    """Return the key of a key slot.

    Args:
        epoch: the id of its data epoch; the first has none.
    """
    check_name("key slot", slot)
    if slot == EPOCHS.removeprefix(KEYS).rstrip("/"):
        raise InputError(f"{slot!r} cannot be the name of a key slot: choose another")
    return f"{KEYS}{epoch}/{slot}" if epoch else f"{KEYS}{slot}"


def epoch(number: int) -> str:
    """Return the key of the record that begins a data epoch, which are counted from 1; the first has none."""
    return f"{EPOCHS}{number:08d}"


def open_record(session: str) -> str:
    """Return the key that says that a session is under way."""
    return f"{OPEN}{session}"


def pack(name: bytes) -> str:
    """Return the key of the pack with this name (16 bytes)."""
    text = name.hex()
    return f"{PACKS}{text[:2]}/{text}"


def index(session: str, part: int = 1) -> str:
    """Return the key of a session's index; its parts are counted from 1."""
    return f"{INDEX}{session}" if part == 1 else f"{INDEX}{session}.{part}"


def decision(vm: str, session: str) -> str:
    """Return the key at which a session is decided: its recovery point, or VOID."""
    return f"{POINTS}{check_name('VM', vm)}/{session}"


def hold(session: str, name: str) -> str:
    """Return the key of a hold of a session's recovery point; of all its holds, without a name."""
    return f"{HOLDS}{session}/{name}"


def repacked(session: str) -> str:
    """Return the key at which a session that rewrites packs is decided."""
    return f"{REPACKED}{session}"


def run(run_id: str) -> str:
    """Return the key of a run's record."""
    return f"{RUNS}{check_name('run', run_id)}"


def drill(run_id: str) -> str:
    """Return the key of what a drill proved."""
    return f"{DRILLS}{check_name('drill', run_id)}"


def forgotten(session: str, part: int = 1) -> str:
    """Return the key of a place for a session's tombstone; they are counted from 1."""
    return f"{FORGOTTEN}{session}" if part == 1 else f"{FORGOTTEN}{session}.{part}"


def verified(number: str, kind: str = "") -> str:
    """Return the key of an object that says when packs were read back, or what else a *kind* of it says."""
    return f"{VERIFIED}{kind}{number}"


def collection(number: str, part: str) -> str:
    """Return the key of a part (`condemned`, `waiting`, `verdict`, `done`) of a collection's record."""
    return f"{COLLECTIONS}{number}/{part}"


def session_of_index(key: str) -> str:
    """Return whose index an object is a part of."""
    return key.removeprefix(INDEX).partition(".")[0]


def pack_name(key: str) -> bytes:
    """Return the name (16 bytes) of the pack with this key."""
    return bytes.fromhex(key.rpartition("/")[2])
