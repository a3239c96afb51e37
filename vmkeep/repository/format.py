"""The `format` object: what a program must know to use the repository, in plain JSON."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

from vmkeep.errors import IntegrityError, UnsupportedError
from vmkeep.repository.crypto import VERSION
from vmkeep.units import KiB, MiB

OPERATIONS: Final = ("read", "write", "collect")
_KNOWN: Final[dict[str, frozenset[str]]] = {name: frozenset() for name in OPERATIONS}
"""Features by operation that this version knows; there are none beyond version 1 itself."""


@dataclass(frozen=True, slots=True)
class Format:
    """How this repository cuts and stores data; fixed when it is made."""

    repository: bytes
    """Random id, 16 bytes."""
    disk_chunk: int = MiB
    """Bytes of a disk's chunk."""
    disk_leaf: int = 512
    """Chunks below a leaf of a disk's tree."""
    stream_least: int = 256 * KiB
    stream_average: int = 1 * MiB
    stream_most: int = 4 * MiB
    pack_most: int = 64 * MiB
    """Bytes of a pack."""
    features: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What beyond version 1 a program must know for each operation."""

    @classmethod
    def new(cls) -> Format:
        """Return the format of a new repository."""
        return cls(secrets.token_bytes(16), features=dict.fromkeys(OPERATIONS, ()))

    def encode(self) -> bytes:
        """Return the object's bytes."""
        record = {
            "format": "vmkeep repository",
            "version": VERSION,
            "repository": self.repository.hex(),
            "features": {name: list(self.features.get(name, ())) for name in OPERATIONS},
            "disk": {"chunk": self.disk_chunk, "leaf": self.disk_leaf},
            "stream": {
                "cut": "fastcdc-2020",
                "least": self.stream_least,
                "average": self.stream_average,
                "most": self.stream_most,
            },
            "pack": {"most": self.pack_most},
        }
        return json.dumps(record, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Format:
        """Read the object.

        Raises:
            IntegrityError: it is not what vmkeep writes.
            UnsupportedError: a later version of vmkeep made it.
        """
        try:
            record: dict[str, Any] = json.loads(data)
            version, stream = record["version"], record["stream"]
            if record["format"] != "vmkeep repository":
                raise ValueError("another format")  # noqa: TRY301  (one message for all that is not ours)
            if version == VERSION:
                return cls(
                    bytes.fromhex(record["repository"]),
                    record["disk"]["chunk"],
                    record["disk"]["leaf"],
                    stream["least"],
                    stream["average"],
                    stream["most"],
                    record["pack"]["most"],
                    {name: tuple(record["features"][name]) for name in OPERATIONS},
                )
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"the format object is damaged, or this is no vmkeep repository: {error!r}"
            ) from error
        raise UnsupportedError(
            f"the repository has format version {version}, and this vmkeep knows {VERSION}; "
            "use a newer vmkeep"
        )

    def require(self, operation: str) -> None:
        """Check that this version of vmkeep may carry out *operation*: `read`, `write` or `collect`.

        Raises:
            UnsupportedError: the repository uses a feature that this version does not know.
        """
        unknown = sorted(set(self.features.get(operation, ())) - _KNOWN[operation])
        if unknown:
            raise UnsupportedError(
                f"the repository uses {', '.join(unknown)}, which this vmkeep does not know and must know "
                f"to {operation}; use a newer vmkeep"
            )
