"""The key slots of a repository: each holds the same master key, wrapped by another secret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.errors import AccessError, InputError, IntegrityError, NotFoundError
from vmkeep.repository import keyslot, layout

if TYPE_CHECKING:
    from vmkeep.repository.secret import Opener
    from vmkeep.stores.base import Store


@dataclass(frozen=True, slots=True)
class Slot:
    """What can be said of a slot without a secret."""

    name: str
    kind: str
    """What opens it: `key`, `passphrase` or `kms`; `unknown` where it is damaged, or by a later vmkeep."""
    made: str | None
    """UTC, ISO 8601; `None`: not recorded. It is protected against damage, not against forgery."""
    damage: str | None = None
    """Why it opens with nothing."""
    service_key: str | None = None
    """Of `kms`: the ARN of the key that wrapped it."""


def names(store: Store) -> list[str]:
    """Return the names of all slots, in order; what cannot be the name of one was not put by us."""
    found = (info.key.removeprefix(layout.KEYS) for info in store.list(layout.KEYS))
    return [name for name in found if layout.is_name(name)]


def list_slots(store: Store) -> list[Slot]:
    """Return all slots, in order of name; a damaged one says so."""
    return [_described(store, name) for name in names(store)]


def unlock(store: Store, secret: Opener, slot: str | None, format_object: bytes) -> bytes:
    """Return the master key from the slot named, or from any that *secret* opens.

    Raises:
        AccessError: the secret opens none.
        IntegrityError: it opens none, and one is damaged; or the format object is.
        NotFoundError: there are no slots.
    """
    tried = [slot] if slot is not None else names(store)
    failures: list[AccessError | IntegrityError] = []
    for name in tried:
        try:
            return keyslot.unwrap(store.get(layout.key_slot(name)), secret, name, format_object)
        except (AccessError, IntegrityError) as error:
            failures.append(error)
    # Damage is worth more to know than a slot that is another's.
    for failure in failures:
        if isinstance(failure, IntegrityError) or len(failures) == 1:
            raise failure
    if not failures:
        raise NotFoundError(f"{store.url} has no key slots: the repository cannot be opened")
    raise AccessError(
        f"wrong key: it opens none of the {len(tried)} slots of the repository in {store.url} "
        f"({', '.join(tried)}); 'vmkeep key list' says what each opens with"
    )


def opened_by(store: Store, secret: Opener, format_object: bytes) -> list[str]:
    """Return the names of the slots that *secret* opens."""
    return [name for name in names(store) if _opens(store, secret, name, format_object)]


def remove_slot(store: Store, slot: str, secret: Opener, format_object: bytes) -> str:
    """Remove a slot, and return the name of one that stays and that *secret* opens.

    Raises:
        InputError: *secret* opens no other: the last slot that is known to work is never removed.
        NotFoundError: there is no such slot.
        AccessError: the credentials of the store may not delete.
    """
    present = names(store)
    if slot not in present:
        raise NotFoundError(f"{store.url} has no key slot {slot!r}; it has {', '.join(present)}")
    others = (name for name in present if name != slot)
    kept = next((name for name in others if _opens(store, secret, name, format_object)), None)
    if kept is None:
        raise InputError(
            f"key slot {slot!r} stays: the key at hand opens no other slot of {store.url}, and the last one "
            "that is known to work is never removed; open the repository with the key of another slot, or "
            "add one first with 'vmkeep key add'"
        )
    body = store.get(layout.key_slot(kept))
    store.delete(layout.key_slot(slot))
    # Somebody may have removed the one that we keep at the same moment, counting on ours.
    store.put_if_absent(layout.key_slot(kept), body)
    return kept


def _described(store: Store, name: str) -> Slot:
    try:
        kind, made, service_key = keyslot.describe(store.get(layout.key_slot(name)), name)
    except (IntegrityError, AccessError) as error:
        return Slot(name, "unknown", None, str(error))
    return Slot(name, kind, made, service_key=service_key)


def _opens(store: Store, secret: Opener, name: str, format_object: bytes) -> bool:
    try:
        keyslot.unwrap(store.get(layout.key_slot(name)), secret, name, format_object)
    except (AccessError, IntegrityError, NotFoundError):
        return False
    return True
