"""Keys derived from a repository's master keys, one for each data epoch, and what is done with each.

master of an epoch (32 random bytes)
  +- chunk   names chunks: keyed BLAKE3
  +- cut     moves the cut points of streams: 63 bits
  +- pack    one key for every pack, by its name:     AES-256-GCM, counter nonces
  +- object  one key for every object, by its salt:   AES-256-GCM, used once
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vmkeep.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Buffer: TypeAlias = bytes | bytearray | memoryview

KEY_SIZE: Final = 32
ID_SIZE: Final = 32
SALT_SIZE: Final = 16
TAG_SIZE: Final = 16
VERSION: Final = 1
_CONTEXT: Final = b"vmkeep/1/"


def derive(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes: HKDF-SHA256 of *secret* with *salt*, for one *purpose*. See: RFC 5869."""
    return HKDF(SHA256(), KEY_SIZE, salt or None, _CONTEXT + purpose).derive(secret)


@dataclass(frozen=True, slots=True)
class EpochKeys:
    """The keys of one data epoch of a repository."""

    epoch: int
    """Counted from 1."""
    repository: bytes
    """The repository's id (16 bytes); part of everything that is authenticated."""
    chunk: bytes = field(repr=False)
    cut: int = field(repr=False)
    pack: bytes = field(repr=False)
    object: bytes = field(repr=False)

    @classmethod
    def from_master(cls, master: bytes, repository: bytes, epoch: int = 1) -> EpochKeys:
        """Derive all keys."""
        # A seed of zero would leave the chunker's own table as it is.
        cut = int.from_bytes(derive(master, b"", b"cut")[:8], "little") & (2**63 - 1) or 1
        return cls(
            epoch,
            repository,
            chunk=derive(master, b"", b"chunk"),
            cut=cut,
            pack=derive(master, b"", b"pack"),
            object=derive(master, b"", b"object"),
        )

    def chunk_id(self, data: Buffer) -> bytes:
        """Return the name (32 bytes) of a chunk: nobody without the key can tell what it names."""
        return blake3(data, key=self.chunk, max_threads=1).digest()

    def pack_cipher(self, name: bytes) -> AESGCM:
        """Return the cipher of the pack with this name, which is random and so serves as salt."""
        return AESGCM(derive(self.pack, name, b"pack"))

    def object_cipher(self, salt: bytes) -> AESGCM:
        """Return the cipher of the object with this salt; it encrypts once."""
        return AESGCM(derive(self.object, salt, b"object"))

    def binding(self, kind: str, name: bytes) -> bytes:
        """Return what ties encrypted bytes to this repository and format, to their kind and their name."""
        return _CONTEXT + self.repository + kind.encode() + b"\0" + name


class Keys:
    """The keys of all data epochs that are known. Safe to use from several threads.

    What is written is written with those of the newest; what is read says of which epoch it is.

    Args:
        masters: the master keys, that of the first epoch first.
        more: asked when something is of a later epoch; returns all master keys, that is, at least *masters*.
    """

    def __init__(
        self, masters: Sequence[bytes], repository: bytes, more: Callable[[], Sequence[bytes]] | None = None
    ) -> None:
        self.repository = repository
        self._more = more
        self._lock = threading.Lock()
        self._masters = tuple(masters)
        self._epochs = tuple(
            EpochKeys.from_master(each, repository, n) for n, each in enumerate(masters, start=1)
        )

    @property
    def masters(self) -> tuple[bytes, ...]:
        """The master keys, that of the first epoch first."""
        return self._masters

    @property
    def newest(self) -> EpochKeys:
        """The keys that everything is written with."""
        return self._epochs[-1]

    def of(self, epoch: int) -> EpochKeys:
        """Return the keys of an epoch, also of one that was begun since these were opened.

        Raises:
            IntegrityError: there is no such epoch.
            AccessError: it was begun since, and what opened the repository does not open it.
        """
        if epoch > len(self._epochs):
            self.learn()
        if not 0 < epoch <= len(self._epochs):
            raise IntegrityError(f"it is of data epoch {epoch}, and the repository has {len(self._epochs)}")
        return self._epochs[epoch - 1]

    def learn(self) -> None:
        """Look for epochs that were begun since.

        Raises:
            AccessError: there is one, and what opened the repository does not open it.
        """
        if self._more is None:
            return
        with self._lock:
            masters = tuple(self._more())
            if len(masters) > len(self._masters):
                later = enumerate(masters[len(self._epochs) :], start=len(self._epochs) + 1)
                self._epochs += tuple(EpochKeys.from_master(each, self.repository, n) for n, each in later)
                self._masters = masters

    def is_id(self, chunk: bytes, data: Buffer, epoch: int) -> bool:
        """Tell whether *data* has the id *chunk*.

        Args:
            epoch: that of its pack, by whose keys the id was made, unless the pack was rewritten since.
        """
        if self.of(epoch).chunk_id(data) == chunk:
            return True
        return any(each.chunk_id(data) == chunk for each in self._epochs if each.epoch != epoch)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and self._epochs == other._epochs

    def __hash__(self) -> int:
        return hash(self.repository)
