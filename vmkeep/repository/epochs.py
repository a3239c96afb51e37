"""Data epochs: from the beginning of one, all that is written is encrypted and named with a new master key.

    keys/<slot>               slots of the first epoch, around its master key
    keys/<id>/<slot>          slots of a later one, <id> being drawn by who wants to begin it
    keys/epochs/<n>           THE decision: epoch n is the one of this <id>; and the master keys of all
                              epochs before it, encrypted with its own

So a slot of the newest epoch opens all of them, and a slot of an older one opens nothing that is newer. First
come the slots, then the decision by put-if-absent: whoever dies in between has changed nothing.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmkeep.errors import AccessError, IntegrityError
from vmkeep.repository import layout
from vmkeep.repository.crypto import KEY_SIZE, SALT_SIZE, derive

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmkeep.stores.base import Store

_NONCE: Final = bytes(12)
_RECORD: Final = re.compile(r"keys/epochs/(\d{8})")
MOST: Final = 256
"""Epochs of a repository: what says of which one something is has one byte."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """A data epoch, as can be said of it without a key."""

    number: int
    """Counted from 1."""
    id: str = ""
    """32 hex digits; empty for the first."""
    begun: str | None = None
    """UTC, ISO 8601; `None` for the first."""


def new_id() -> str:
    """Draw the id of an epoch that may be begun."""
    return secrets.token_hex(16)


def newest(store: Store, listed: Iterable[str] | None = None) -> tuple[Epoch, dict[str, Any]]:
    """Return the epoch that everything is written in now, and its record.

    Args:
        listed: the keys below `keys/`, where they are known already.

    Raises:
        IntegrityError: its record is damaged.
    """
    number = last(listed if listed is not None else (info.key for info in store.list(layout.EPOCHS)))
    if number == 1:
        return Epoch(1), {}
    key = layout.epoch(number)
    return _decode(key, store.get(key))


def last(keys: Iterable[str]) -> int:
    """Return the number of the newest epoch, by the keys below `keys/`."""
    return max((int(found[1]) for key in keys if (found := _RECORD.fullmatch(key))), default=1)


def sound(record: Any) -> tuple[Epoch, dict[str, Any]] | None:
    """Return the epoch that a record begins, and the record; `None`: it is damaged."""
    try:
        fields = {name: value for name, value in record.items() if name != "check"}
        if record["check"] != _check(fields):
            return None
        return Epoch(record["epoch"], record["id"], record["begun"]), fields
    except (KeyError, AttributeError, TypeError):
        return None


def again(record: dict[str, Any]) -> bytes:
    """Return the record as it was put first."""
    return _dump({**record, "check": _check(record)})


def encode(number: int, id_: str, masters: Sequence[bytes], repository: bytes) -> bytes:
    """Return the record that begins an epoch.

    Args:
        masters: the master keys of all epochs before it, and its own.
        repository: the repository's id.
    """
    salt = secrets.token_bytes(SALT_SIZE)
    cipher = AESGCM(derive(masters[-1], salt, b"epoch"))
    before = cipher.encrypt(_NONCE, b"".join(masters[:-1]), _binding(repository, number, id_))
    record = {
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "earlier": before.hex(),
        "epoch": number,
        "id": id_,
        "salt": salt.hex(),
    }
    return again(record)


def masters(epoch: Epoch, record: dict[str, Any], master: bytes, repository: bytes) -> tuple[bytes, ...]:
    """Return the master keys of all epochs until this one, whose own is *master*.

    Raises:
        IntegrityError: the record does not fit it.
    """
    if epoch.number == 1:
        return (master,)
    cipher = AESGCM(derive(master, bytes.fromhex(record["salt"]), b"epoch"))
    binding = _binding(repository, epoch.number, epoch.id)
    try:
        before = cipher.decrypt(_NONCE, bytes.fromhex(record["earlier"]), binding)
    except InvalidTag:
        raise IntegrityError(f"{layout.epoch(epoch.number)} is damaged: it does not authenticate") from None
    earlier = tuple(before[at : at + KEY_SIZE] for at in range(0, len(before), KEY_SIZE))
    if len(earlier) != epoch.number - 1:
        raise IntegrityError(f"{layout.epoch(epoch.number)} is damaged: it holds {len(earlier)} earlier keys")
    return (*earlier, master)


def check_room(number: int) -> None:
    """Check that there can be an epoch of this number.

    Raises:
        AccessError: there cannot.
    """
    if number > MOST:
        raise AccessError(f"a repository has at most {MOST} data epochs; copy it into a new one")


def _binding(repository: bytes, number: int, id_: str) -> bytes:
    return b"vmkeep/1/epoch\0" + repository + number.to_bytes(4, "little") + id_.encode()


def _decode(key: str, data: bytes) -> tuple[Epoch, dict[str, Any]]:
    try:
        found = sound(json.loads(data))
    except ValueError:
        found = None
    if found is None:
        raise IntegrityError(
            f"{key} is damaged: its checksum is wrong; delete it, and the copy in a key slot takes its place"
        )
    return found


def _check(record: dict[str, Any]) -> str:
    return blake3(_dump(record)).hexdigest()[:32]


def _dump(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
