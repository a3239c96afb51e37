"""The master key, wrapped by a secret, as JSON.

Its checksum tells a damaged slot from a wrong secret: the operator does something else about each.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from vmkeep.errors import AccessError, IntegrityError
from vmkeep.repository.crypto import KEY_SIZE, SALT_SIZE, derive
from vmkeep.repository.format import Format
from vmkeep.repository.secret import Secret

if TYPE_CHECKING:
    from vmkeep.repository.secret import KeyService, Opener

SCRYPT_COST: Final = 2**16
"""n; with r = 8 that is 64 MiB of memory and 0.2 s a guess."""
_LARGEST_COST: Final = 2**20
_SLOT: Final = b"slot"
_NONCE: Final = bytes(12)
_KINDS: Final = {"hkdf": "key", "scrypt": "passphrase", "kms": "kms"}
_OPENS_WITH: Final = {"hkdf": "a key file", "scrypt": "a passphrase", "kms": "AWS KMS"}


def wrap(  # noqa: PLR0913  (two of them only where they differ from what they mostly are)
    master: bytes,
    secret: Opener,
    slot: str,
    format_object: bytes,
    *,
    begins: bytes | None = None,
    cost: int = SCRYPT_COST,
) -> bytes:
    """Return the object at `keys/<slot>`; it also holds a digest of the `format` object.

    Args:
        slot: what is behind `keys/` in its name.
        begins: the record that begins its data epoch; the slot keeps a copy of it.

    Raises:
        AccessError, InputError, TemporaryError: the service that is to wrap it does not.
    """
    salt = secrets.token_bytes(SALT_SIZE)
    way: dict[str, Any]
    if not isinstance(secret, Secret):
        data_key, closed, name = secret.new_key(Format.decode(format_object).repository)
        way = {"derivation": "kms", "data_key": closed.hex(), "key": name}
        wrapping = derive(data_key, salt, _SLOT)
    elif secret.strong:
        way = {"derivation": "hkdf"}
        wrapping = derive(secret.data, salt, _SLOT)
    else:
        way = {"derivation": "scrypt", "n": cost, "r": 8, "p": 1}
        wrapping = _stretch(secret, salt, way)
    if begins is not None:
        way["begins"] = json.loads(begins)
    cipher = AESGCM(wrapping)
    inside = master + hashlib.sha256(format_object).digest()
    wrapped = cipher.encrypt(_NONCE, inside, _binding(slot))
    made = datetime.now(UTC).isoformat(timespec="seconds")
    record = {**way, "made": made, "salt": salt.hex(), "wrapped": wrapped.hex()}
    return _encode({**record, "check": _check(record)})


def unwrap(data: bytes, secret: Opener, slot: str, format_object: bytes) -> bytes:
    """Return the master key.

    Raises:
        AccessError: the secret is not the one of this slot.
        IntegrityError: the slot, or the repository's `format` object, is damaged.
        TemporaryError: the service that opens it is away.
    """
    record = _decode(data, slot)
    cipher = AESGCM(_wrapping_key(record, secret, slot, format_object))
    try:
        inside = cipher.decrypt(_NONCE, bytes.fromhex(record["wrapped"]), _binding(slot))
    except InvalidTag:
        raise AccessError(f"wrong key: it does not open slot {_name(slot)!r} of the repository") from None
    if inside[KEY_SIZE:] != hashlib.sha256(format_object).digest():
        raise IntegrityError("the repository's format object is damaged: it is not the one that was written")
    return inside[:KEY_SIZE]


def describe(data: bytes, slot: str) -> tuple[str, str | None, str | None]:
    """Return what can be told without opening it.

    Returns:
        What opens the slot: `key`, `passphrase` or `kms`; when it was made (UTC, ISO 8601), if it says so;
        and the name of the service's key.

    Raises:
        IntegrityError: it is damaged.
    """
    record = _decode(data, slot)
    return _KINDS[record["derivation"]], record.get("made"), record.get("key")


def begins(data: bytes, slot: str) -> dict[str, Any] | None:
    """Return the slot's copy of the record that begins its data epoch, if it has one.

    Raises:
        IntegrityError: the slot is damaged.
    """
    found: dict[str, Any] | None = _decode(data, slot).get("begins")
    return found


def _wrapping_key(record: dict[str, Any], secret: Opener, slot: str, format_object: bytes) -> bytes:
    """Return the key (32 bytes) that the master key is wrapped with."""
    way, salt = record["derivation"], bytes.fromhex(record["salt"])
    match way, secret:
        case "kms", service if not isinstance(service, Secret):
            return derive(_data_key(record, service, slot, format_object), salt, _SLOT)
        case "hkdf", Secret(strong=True):
            return derive(secret.data, salt, _SLOT)
        case "scrypt", Secret(strong=False):
            return _stretch(secret, salt, record)
    raise AccessError(
        f"wrong key: slot {_name(slot)!r} of the repository opens with {_OPENS_WITH[way]}, "
        "not with what was given"
    )


def _data_key(record: dict[str, Any], service: KeyService, slot: str, format_object: bytes) -> bytes:
    try:
        return service.open_key(bytes.fromhex(record["data_key"]), Format.decode(format_object).repository)
    except AccessError as error:
        raise AccessError(f"slot {_name(slot)!r}, which was wrapped by {record['key']}: {error}") from error


def _stretch(secret: Secret, salt: bytes, way: dict[str, Any]) -> bytes:
    scrypt = Scrypt(salt=salt, length=KEY_SIZE, n=way["n"], r=way["r"], p=way["p"])
    return scrypt.derive(secret.data)


def _binding(slot: str) -> bytes:
    return b"vmkeep/1/slot\0" + slot.encode()


def _name(slot: str) -> str:
    return slot.rpartition("/")[2]


def _check(record: dict[str, Any]) -> str:
    return blake3(_encode(record)).hexdigest()[:32]


def _encode(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _decode(data: bytes, slot: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(data)
        sound = record.pop("check") == _check(record) and record.get("n", 0) <= _LARGEST_COST
        known = record["derivation"] in _KINDS
    except (ValueError, KeyError, AttributeError, TypeError):
        sound, known = False, False
    if sound and not known:
        raise AccessError(
            f"slot {slot!r} opens with {record['derivation']!r}, which this vmkeep does not know"
        )
    if not sound:
        raise IntegrityError(
            f"keys/{slot} is damaged: its checksum is wrong; use another slot, or a copy of it"
        )
    return record
