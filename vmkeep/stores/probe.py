"""Find out whether a store keeps the promises that the repository is built on."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING

from vmkeep.errors import AccessError, InputError

if TYPE_CHECKING:
    from vmkeep.stores.base import Store


def probe(store: Store) -> None:
    """Write a small object twice, list it and read it back; remove it where that is allowed.

    Raises:
        InputError: the store overwrites what exists, or does not show or return what was written.
    """
    key, first, second = f"probe/{secrets.token_hex(16)}", b"first", b"second writer"
    try:
        _check(store, key, first, second)
    finally:
        with contextlib.suppress(AccessError):  # a writer's credentials may not delete
            store.delete(key)


def _check(store: Store, key: str, first: bytes, second: bytes) -> None:
    written = store.put_if_absent(key, first)
    if not written and store.get(key) != first:
        raise InputError(_refusal(store, "a new object was answered with 'exists'"))
    if store.put_if_absent(key, second) or store.get(key) != first:
        raise InputError(_refusal(store, "an object that existed was overwritten (no put-if-absent)"))
    listed = {info.key: info.size for info in store.list("probe/")}
    if listed.get(key) != len(first):
        raise InputError(_refusal(store, "an object just written is not in the listing"))


def _refusal(store: Store, found: str) -> str:
    return (
        f"{store.url} cannot hold a repository: {found}. Concurrent backups would destroy each other. "
        "Use a directory, AWS S3, or another service with conditional writes (If-None-Match)"
    )
