"""Where objects lie: the one Protocol behind which every store is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object in a listing."""

    key: str
    size: int
    """Bytes."""


class Store(Protocol):
    """Objects by key. Safe to use from several threads and processes.

    Keys are relative to the store's root: ASCII letters, digits and ``-_./``. Listing and reading
    see every write that was acknowledged before they began.
    """

    @property
    def url(self) -> str:
        """Where it is, for people; holds no credentials."""

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        """Write the object and return true, or return false when the key exists; never both, never half.

        Of several writers exactly one sees true. After a lost answer the caller cannot know: it reads
        back and compares (see `vmkeep.repository.uploads`). The write is durable when this returns.
        A file that is given as *body* must not change any more: a store may keep it as it is, by a link.

        Raises:
            TemporaryError: the store is away or busy; the object may or may not exist.
            AccessError: credentials or permissions do not allow it.
        """

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes, or *length* bytes from *start*.

        Raises:
            NotFoundError: there is no such object.
            TemporaryError: as above.
        """

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with *prefix*, in order of key."""

    def delete(self, key: str) -> None:
        """Remove the object; one that does not exist is fine."""

    def close(self) -> None:
        """Let go of connections; a second call does nothing."""


@runtime_checkable
class ChecksumStore(Protocol):
    """A store that knows checksums of what it holds, and tells them without reading it."""

    def crc32(self, key: str) -> int | None:
        """Return the CRC-32 of an object; `None`: it does not know it.

        Raises:
            NotFoundError: there is no such object.
            TemporaryError, AccessError: as in `Store`.
        """
