"""Keys derived from the repository's master key, and what is done with each.

master (32 random bytes)
  +- chunk   names chunks: keyed BLAKE3
  +- cut     moves the cut points of streams: 63 bits
  +- pack    one key for every pack, by its name:     AES-256-GCM, counter nonces
  +- object  one key for every object, by its salt:   AES-256-GCM, used once
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

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
class Keys:
    """The keys of one repository."""

    repository: bytes
    """The repository's id (16 bytes); part of everything that is authenticated."""
    chunk: bytes = field(repr=False)
    cut: int = field(repr=False)
    pack: bytes = field(repr=False)
    object: bytes = field(repr=False)

    @classmethod
    def from_master(cls, master: bytes, repository: bytes) -> Keys:
        """Derive all keys."""
        # A seed of zero would leave the chunker's own table as it is.
        cut = int.from_bytes(derive(master, b"", b"cut")[:8], "little") & (2**63 - 1) or 1
        return cls(
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
