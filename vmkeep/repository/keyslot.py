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

if TYPE_CHECKING:
    from vmkeep.repository.secret import Secret

SCRYPT_COST: Final = 2**16
"""n; with r = 8 that is 64 MiB of memory and 0.2 s a guess."""
_LARGEST_COST: Final = 2**20
_NONCE: Final = bytes(12)


def wrap(master: bytes, secret: Secret, slot: str, format_object: bytes, *, cost: int = SCRYPT_COST) -> bytes:
    """Return the object at `keys/<slot>`; it also holds a digest of the `format` object."""
    salt = secrets.token_bytes(SALT_SIZE)
    if secret.strong:
        way: dict[str, Any] = {"derivation": "hkdf"}
    else:
        way = {"derivation": "scrypt", "n": cost, "r": 8, "p": 1}
    cipher = AESGCM(_stretch(secret, salt, way))
    inside = master + hashlib.sha256(format_object).digest()
    wrapped = cipher.encrypt(_NONCE, inside, _binding(slot))
    made = datetime.now(UTC).isoformat(timespec="seconds")
    record = {**way, "made": made, "salt": salt.hex(), "wrapped": wrapped.hex()}
    return _encode({**record, "check": _check(record)})


def unwrap(data: bytes, secret: Secret, slot: str, format_object: bytes) -> bytes:
    """Return the master key.

    Raises:
        AccessError: the secret is not the one of this slot.
        IntegrityError: the slot, or the repository's `format` object, is damaged.
    """
    record = _decode(data, slot)
    way = record["derivation"]
    if secret.strong != (way == "hkdf"):
        kind = "a key file" if way == "hkdf" else "a passphrase"
        raise AccessError(
            f"wrong key: slot {slot!r} of the repository opens with {kind}, not with what was given"
        )
    cipher = AESGCM(_stretch(secret, bytes.fromhex(record["salt"]), record))
    try:
        inside = cipher.decrypt(_NONCE, bytes.fromhex(record["wrapped"]), _binding(slot))
    except InvalidTag:
        raise AccessError(f"wrong key: it does not open slot {slot!r} of the repository") from None
    if inside[KEY_SIZE:] != hashlib.sha256(format_object).digest():
        raise IntegrityError("the repository's format object is damaged: it is not the one that was written")
    return inside[:KEY_SIZE]


def describe(data: bytes, slot: str) -> tuple[str, str | None]:
    """Return what opens the slot, `key` or `passphrase`, and when it was made (UTC, ISO 8601) if it says so.

    Raises:
        IntegrityError: it is damaged.
    """
    record = _decode(data, slot)
    return "key" if record["derivation"] == "hkdf" else "passphrase", record.get("made")


def _stretch(secret: Secret, salt: bytes, way: dict[str, Any]) -> bytes:
    if secret.strong:
        return derive(secret.data, salt, b"slot")
    scrypt = Scrypt(salt=salt, length=KEY_SIZE, n=way["n"], r=way["r"], p=way["p"])
    return scrypt.derive(secret.data)


def _binding(slot: str) -> bytes:
    return b"vmkeep/1/slot\0" + slot.encode()


def _check(record: dict[str, Any]) -> str:
    return blake3(_encode(record)).hexdigest()[:32]


def _encode(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _decode(data: bytes, slot: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(data)
        sound = record.pop("check") == _check(record) and record.get("n", 0) <= _LARGEST_COST
    except (ValueError, KeyError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise IntegrityError(
            f"keys/{slot} is damaged: its checksum is wrong; use another slot, or a copy of it"
        )
    return record
