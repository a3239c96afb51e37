"""Compression of chunks; what does not shrink is noticed by a sample and stored as it is."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import zstandard

from vmkeep.errors import IntegrityError
from vmkeep.units import KiB

if TYPE_CHECKING:
    from vmkeep.repository.crypto import Buffer

RAW: Final = 0
ZSTD: Final = 1
LEVEL: Final = 2
"""6 % less to store than 1, for a fifth more processor time; see `docs/adr/0012-compression.md`."""
_SAMPLED_ABOVE: Final = 128 * KiB
_SAMPLE: Final = 8 * KiB
_SAMPLES: Final = 4
_WORTH: Final = 0.97
"""Compress when the result is shorter than this share."""

_local = threading.local()


def compress(data: Buffer) -> tuple[Buffer, int]:
    """Return *data* and `RAW`, or its zstd frame and `ZSTD` when that is worth it."""
    compressor = _compressor()
    if len(data) > _SAMPLED_ABOVE and not _shrinks(memoryview(data), compressor):
        return data, RAW
    frame = compressor.compress(data)
    return (frame, ZSTD) if len(frame) < len(data) * _WORTH else (data, RAW)


def decompress(data: Buffer, codec: int, raw: int) -> Buffer:
    """Return the *raw* bytes that `compress` was given.

    Raises:
        IntegrityError: they are not that.
    """
    if codec == RAW:
        return data
    if codec != ZSTD:
        raise IntegrityError(f"codec {codec} is not known")
    try:
        plain: bytes = _decompressor().decompress(data, max_output_size=raw)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"the zstd frame is damaged: {error}") from error
    return plain


def _shrinks(data: memoryview, compressor: zstandard.ZstdCompressor) -> bool:
    step = (len(data) - _SAMPLE) // (_SAMPLES - 1)
    taken = b"".join(data[i * step : i * step + _SAMPLE] for i in range(_SAMPLES))
    return len(compressor.compress(taken)) < len(taken) * _WORTH


def _compressor() -> zstandard.ZstdCompressor:
    """Return this thread's own: they are expensive to make and not safe to share."""
    found: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if found is None:
        found = _local.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    found: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if found is None:
        found = _local.decompressor = zstandard.ZstdDecompressor()
    return found
