"""Objects in memory: the reference for every other store, and a repository for tests."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vmkeep.errors import NotFoundError
from vmkeep.stores.base import ObjectInfo
from vmkeep.stores.naming import check_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class MemoryStore:
    """Keeps objects in a dictionary until the process ends."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """A name for messages."""
        return "memory:"

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        """See `Store`."""
        data = body if isinstance(body, bytes) else body.read_bytes()
        with self._lock:
            return self._objects.setdefault(check_key(key), data) is data

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Store`."""
        try:
            data = self._objects[check_key(key)]
        except KeyError:
            raise NotFoundError(f"{self.url} has no object {key}") from None
        return data[start : None if length is None else start + length]

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store`."""
        with self._lock:
            found = sorted((key, len(data)) for key, data in self._objects.items() if key.startswith(prefix))
        return (ObjectInfo(key, size) for key, size in found)

    def delete(self, key: str) -> None:
        """See `Store`."""
        with self._lock:
            self._objects.pop(check_key(key), None)

    def close(self) -> None:
        """Keep the objects: another user of the same store may still read them."""
