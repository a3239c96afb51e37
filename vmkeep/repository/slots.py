"""The key slots of a repository: each holds the master key of the newest epoch, wrapped by another secret."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmkeep.errors import AccessError, ConflictError, InputError, IntegrityError, NotFoundError
from vmkeep.repository import epochs, keyslot, layout
from vmkeep.repository.crypto import KEY_SIZE
from vmkeep.repository.format import Format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmkeep.repository.epochs import Epoch
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


@dataclass(frozen=True, slots=True)
class Keyring:
    """The slots of the newest epoch in a store."""

    store: Store
    epoch: Epoch
    record: dict[str, Any]
    """What began the epoch."""
    names: list[str]
    """Of its slots, in order."""
    others: list[str]
    """The keys of all other slots: of earlier epochs, and of such as were never begun."""

    @classmethod
    def of(cls, store: Store) -> Keyring:
        """Look which slots there are.

        Where the record of the newest epoch is lost or damaged, the copy in its slots is used.

        Raises:
            IntegrityError: it is damaged, and there is no copy.
        """
        keys = [info.key for info in store.list(layout.KEYS)]
        try:
            found = cls._at(store, keys, *epochs.newest(store, keys))
        except IntegrityError:
            copy = _copy(store, keys, epochs.last(keys))
            if copy is None:
                raise
            return cls._at(store, keys, *copy)
        if found.names:
            return found
        # All slots of an epoch are only ever removed when the next one has begun: its record is lost.
        copy = _copy(store, keys, found.epoch.number + 1)
        if copy is None:
            return found
        with contextlib.suppress(AccessError):  # whoever may put it again does, some time
            store.put_if_absent(layout.epoch(copy[0].number), epochs.again(copy[1]))
        return cls._at(store, keys, *copy)

    @classmethod
    def _at(cls, store: Store, keys: list[str], epoch: Epoch, record: dict[str, Any]) -> Keyring:
        start = layout.KEYS + (f"{epoch.id}/" if epoch.id else "")
        ours = [key for key in keys if key.startswith(start) and layout.is_name(key.removeprefix(start))]
        others = [key for key in keys if key not in ours and not key.startswith(layout.EPOCHS)]
        return cls(store, epoch, record, [key.removeprefix(start) for key in ours], others)

    def key(self, slot: str) -> str:
        """Return the key of one of its slots."""
        return layout.key_slot(slot, self.epoch.id)

    def unwrap(self, slot: str, secret: Opener, format_object: bytes) -> bytes:
        """Return the master key of the epoch from a slot; see `keyslot.unwrap`."""
        data = self.store.get(self.key(slot))
        return keyslot.unwrap(data, secret, self.key(slot).removeprefix(layout.KEYS), format_object)

    def opens(self, slot: str, secret: Opener, format_object: bytes) -> bool:
        """Tell whether *secret* opens a slot."""
        try:
            self.unwrap(slot, secret, format_object)
        except (AccessError, IntegrityError, NotFoundError):
            return False
        return True


def names(store: Store) -> list[str]:
    """Return the names of all slots, in order; what cannot be the name of one was not put by us."""
    return Keyring.of(store).names


def list_slots(store: Store) -> list[Slot]:
    """Return all slots, in order of name; a damaged one says so."""
    ring = Keyring.of(store)
    return [_described(ring, name) for name in ring.names]


def newest_epoch(store: Store) -> Epoch:
    """Return the epoch that the slots belong to, also where its record is lost or damaged."""
    return Keyring.of(store).epoch


def unlock(store: Store, secret: Opener, slot: str | None, format_object: bytes) -> tuple[bytes, ...]:
    """Return the master keys of all epochs, from the slot named, or from any that *secret* opens.

    Raises:
        AccessError: the secret opens none.
        IntegrityError: it opens none, and one is damaged; or the format object is.
        NotFoundError: there are no slots.
    """
    ring = Keyring.of(store)
    tried = [slot] if slot is not None else ring.names
    failures: list[AccessError | IntegrityError] = []
    for name in tried:
        try:
            master = ring.unwrap(name, secret, format_object)
        except (AccessError, IntegrityError) as error:
            failures.append(error)
        else:
            return epochs.masters(ring.epoch, ring.record, master, Format.decode(format_object).repository)
    # Damage is worth more to know than a slot that is another's.
    for failure in failures:
        if isinstance(failure, IntegrityError) or (len(failures) == 1 and not ring.epoch.id):
            raise failure
    if not failures:
        raise NotFoundError(f"{store.url} has no key slots: the repository cannot be opened")
    later = f"; since {ring.epoch.begun} only keys count that were added to its new data epoch"
    raise AccessError(
        f"wrong key: it opens none of the {len(tried)} slots of the repository in {store.url} "
        f"({', '.join(tried)}); 'vmkeep key list' says what each opens with{later if ring.epoch.id else ''}"
    )


def opened_by(store: Store, secret: Opener, format_object: bytes) -> list[str]:
    """Return the names of the slots that *secret* opens."""
    ring = Keyring.of(store)
    return [name for name in ring.names if ring.opens(name, secret, format_object)]


def add_slot(store: Store, slot: str, secret: Opener, masters: Sequence[bytes], format_object: bytes) -> None:
    """Let another secret open the repository too.

    Args:
        masters: the master keys of all epochs that are known.

    Raises:
        InputError: the slot exists.
        ConflictError: a new epoch was begun meanwhile.
    """
    ring = Keyring.of(store)
    key = ring.key(slot)
    if ring.epoch.number == len(masters):
        begins = epochs.again(ring.record) if ring.record else None
        name = key.removeprefix(layout.KEYS)
        wrapped = keyslot.wrap(masters[-1], secret, name, format_object, begins=begins)
        if not put_own(store, key, wrapped):
            raise InputError(f"the key slot {slot!r} exists in {store.url}; choose another name")
    if Keyring.of(store).epoch.number != len(masters):
        raise ConflictError(f"a new data epoch of {store.url} was begun meanwhile: add the slot again")


def remove_slot(store: Store, slot: str, secret: Opener, format_object: bytes) -> str:
    """Remove a slot, and return the name of one that stays and that *secret* opens.

    Raises:
        InputError: *secret* opens no other: the last slot that is known to work is never removed.
        NotFoundError: there is no such slot.
        AccessError: the credentials of the store may not delete.
    """
    ring = Keyring.of(store)
    if slot not in ring.names:
        raise NotFoundError(f"{store.url} has no key slot {slot!r}; it has {', '.join(ring.names)}")
    others = (name for name in ring.names if name != slot)
    kept = next((name for name in others if ring.opens(name, secret, format_object)), None)
    if kept is None:
        raise InputError(
            f"key slot {slot!r} stays: the key at hand opens no other slot of {store.url}, and the last one "
            "that is known to work is never removed; open the repository with the key of another slot, or "
            "add one first with 'vmkeep key add'"
        )
    body = store.get(ring.key(kept))
    store.delete(ring.key(slot))
    # Somebody may have removed the one that we keep at the same moment, counting on ours.
    store.put_if_absent(ring.key(kept), body)
    return kept


def begin_epoch(
    store: Store, secret: Opener, masters: Sequence[bytes], format_object: bytes
) -> tuple[Epoch, str, list[str]]:
    """Begin a new data epoch, which only *secret* opens; all slots of the old one end.

    Args:
        masters: the master keys of all epochs that there are.

    Returns:
        The epoch, the name of its slot, and the names of the slots that ended.

    Raises:
        AccessError: *secret* opens no slot now.
        ConflictError: another one was begun meanwhile.
    """
    ring = Keyring.of(store)
    number, id_ = len(masters) + 1, epochs.new_id()
    epochs.check_room(number)
    slot = next((name for name in ring.names if ring.opens(name, secret, format_object)), None)
    if slot is None or ring.epoch.number != len(masters):
        raise AccessError(f"the key opens no slot of the newest data epoch of {store.url}: open it again")
    repository = Format.decode(format_object).repository
    master = secrets.token_bytes(KEY_SIZE)
    key = layout.key_slot(slot, id_)
    name = key.removeprefix(layout.KEYS)
    record = epochs.encode(number, id_, [*masters, master], repository)
    put_own(store, key, keyslot.wrap(master, secret, name, format_object, begins=record))
    # Read back before it counts: nobody else could open what is written from then on.
    if keyslot.unwrap(store.get(key), secret, name, format_object) != master:
        raise IntegrityError(f"{key} in {store.url} is not what was put there")
    begun = layout.epoch(number)
    if not put_own(store, begun, record):
        with contextlib.suppress(AccessError):
            store.delete(key)
        raise ConflictError(f"somebody else began data epoch {number} of {store.url} at the same time")
    # Those that were there before the decision: what came later belongs to an epoch behind ours.
    for old in (*map(ring.key, ring.names), *ring.others):
        with contextlib.suppress(AccessError):  # it opens nothing that is written from now on
            store.delete(old)
    return epochs.newest(store)[0], slot, [each for each in ring.names if each != slot]


def put_own(store: Store, key: str, body: bytes) -> bool:
    """Put a body that nobody else can have; one that is there already is ours, and its answer was lost."""
    return store.put_if_absent(key, body) or store.get(key) == body


def _copy(store: Store, keys: list[str], number: int) -> tuple[Epoch, dict[str, Any]] | None:
    """Return the copy that slots keep of the record of an epoch, if it is the only one."""
    copies = {}
    for key in keys:
        if key.count("/") == 2 and not key.startswith(layout.EPOCHS):
            with contextlib.suppress(IntegrityError, AccessError, NotFoundError):
                found = epochs.sound(keyslot.begins(store.get(key), key.removeprefix(layout.KEYS)))
                if found is not None and found[0].number == number:
                    copies[found[0].id] = found
    return next(iter(copies.values())) if len(copies) == 1 else None


def _described(ring: Keyring, name: str) -> Slot:
    try:
        kind, made, service_key = keyslot.describe(ring.store.get(ring.key(name)), name)
    except (IntegrityError, AccessError) as error:
        return Slot(name, "unknown", None, str(error))
    return Slot(name, kind, made, service_key=service_key)
