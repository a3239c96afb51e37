"""Holds: recovery points that are not forgotten, whatever retention says, until each hold is released.

    holds/<session>/<id>            who holds the session's point, why, and until when
    holds/<session>/<id>.released   not any more

Nothing is overwritten or deleted for it. Of a hold and a forgetting at once one wins: see `forgotten`.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vmkeep.errors import ConflictError, InputError, IntegrityError, NotFoundError
from vmkeep.repository import layout, sealed
from vmkeep.repository.forgotten import prevent
from vmkeep.repository.records import from_json, to_json

if TYPE_CHECKING:
    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import Store

_KIND: Final = "hold"
_RELEASE: Final = "release"


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a recovery point must stay."""

    id: str
    vm: str
    session: str
    name: str
    """What people call it, such as the number of a case."""
    reason: str
    since: str
    """UTC, ISO 8601."""
    until: str | None = None
    """UTC, ISO 8601; `None`: until it is released."""

    def active(self, now: datetime) -> bool:
        """Tell whether it still holds at *now*."""
        return self.until is None or now < datetime.fromisoformat(self.until)

    def __str__(self) -> str:
        until = f" until {self.until}" if self.until else ""
        return f"{self.name!r}{until}: {self.reason}"


def hold(  # noqa: PLR0913  (each is a keyword, and none belongs to another)
    store: Store,
    keys: Keys,
    *,
    vm: str,
    session: str,
    name: str,
    reason: str,
    until: datetime | None = None,
) -> Hold:
    """Hold a recovery point.

    Raises:
        InputError: the hold has no name, or would be over already.
        ConflictError: it is held under this name already.
        NotFoundError: it was forgotten.
    """
    now = datetime.now(UTC)
    if not name.strip():
        raise InputError("a hold needs a name, such as the number of a case: it is released by it")
    if until is not None and until <= now:
        raise InputError(
            f"a hold until {until.astimezone(UTC).isoformat(timespec='seconds')} would be over already"
        )
    if any(one.name == name and one.active(now) for one in holds(store, keys, session)):
        raise ConflictError(f"recovery point {session} of {vm} is held as {name!r} already")
    new = Hold(
        layout.new_session_id(now), vm, session, name, reason, now.isoformat(timespec="seconds"),
        until.astimezone(UTC).isoformat(timespec="seconds") if until else None,
    )  # fmt: skip
    key = layout.hold(session, new.id)
    store.put_if_absent(key, sealed.seal(keys, _KIND, key, to_json(asdict(new))))
    if not prevent(store, keys, session):
        release(store, keys, new, "the recovery point was forgotten")
        raise NotFoundError(f"recovery point {session} of {vm} was forgotten; it cannot be held any more")
    return new


def holds(store: Store, keys: Keys, session: str | None = None) -> list[Hold]:
    """Return the holds that are not released, of one recovery point or of all; also those that are over.

    One that is damaged holds, too: nobody knows why, or until when. Its name says that, and releases it.
    """
    found = []
    for key in _standing(store, layout.HOLDS if session is None else layout.hold(session, "")):
        with contextlib.suppress(NotFoundError):
            found.append(_read(keys, key, store.get(key)))
    return found


def release(store: Store, keys: Keys, hold_: Hold, reason: str) -> None:
    """Let a hold not count any more; a second call does nothing."""
    key = layout.hold(hold_.session, f"{hold_.id}{layout.RELEASED}")
    record = {"reason": reason, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    store.put_if_absent(key, sealed.seal(keys, _RELEASE, key, to_json(record)))


def _read(keys: Keys, key: str, body: bytes) -> Hold:
    session, _, number = key.removeprefix(layout.HOLDS).partition("/")
    try:
        record = from_json(sealed.unseal(keys, _KIND, key, body), key)
        return Hold(**{name: record[name] for name in Hold.__dataclass_fields__})
    except (IntegrityError, KeyError) as error:
        why = str(error) if isinstance(error, IntegrityError) else f"{key} is malformed: it has no {error}"
        return Hold(number, "", session, f"damaged-{number}", why, "")


def _standing(store: Store, prefix: str) -> list[str]:
    """Return the keys of the holds below *prefix* that are not released, in order."""
    there = {info.key for info in store.list(prefix)}
    return sorted(
        key for key in there if not key.endswith(layout.RELEASED) and f"{key}{layout.RELEASED}" not in there
    )
