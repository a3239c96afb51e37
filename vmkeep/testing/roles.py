"""A store as one role sees it: what the role need not do is denied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.errors import AccessError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmkeep.repository.roles import Rights
    from vmkeep.stores.base import ObjectInfo, Store


class RestrictedStore:
    """Passes on what *rights* allow. What is not there is "not found", also for who may not read it."""

    def __init__(self, store: Store, rights: Rights) -> None:
        self._store = store
        self._rights = rights
        self.denied: list[tuple[str, str]] = []
        """What was tried in vain: verb and key."""

    @property
    def url(self) -> str:
        """The URL of the store behind."""
        return self._store.url

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        """See `Store`."""
        self._check("put", key)
        return self._store.put_if_absent(key, body)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Store`."""
        data = self._store.get(key, start, length)
        self._check("get", key)
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store`."""
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        """See `Store`."""
        self._check("delete", key)
        self._store.delete(key)

    def close(self) -> None:
        """See `Store`."""
        self._store.close()

    def _check(self, verb: str, key: str) -> None:
        if not self._rights.allow(verb, key):
            self.denied.append((verb, key))
            raise AccessError(f"{self.url}: {verb} {key} is denied")
