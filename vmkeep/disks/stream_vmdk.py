"""Writes streamOptimized vmdk images, in which vSphere takes disks in, while they are sent.

    header, descriptor │ grains ... table │ grains ... table │ ... │ directory │ footer │ end
                         each: sector, length, deflated          what the header could not know

Tables stand behind what they point to, so nothing is written twice, and no file is needed. Grains of zeros
are left out. Deflating takes longest, so several threads do it; `qemu-img convert` has one.

See: VMware, "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents".
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from vmkeep.units import KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from vmkeep.disks.device import DiskSource

_SECTOR: Final = 512
_GRAIN: Final = 64 * KiB
_ENTRIES: Final = 512
"""Grains of a table."""
_OVERHEAD: Final = 128
"""Sectors before the first grain."""
_DESCRIPTOR: Final = 20
"""Sectors of the descriptor, which begins at the second."""
_AT_THE_END: Final = 0xFFFF_FFFF_FFFF_FFFF
_FLAGS: Final = 1 | 1 << 16 | 1 << 17
"""The header's line ends are those that they should be; grains are compressed; there are markers."""
_DEFLATE: Final = 1
_TABLE, _DIRECTORY, _FOOTER = 1, 2, 3
_ZEROS: Final = bytes(_GRAIN)
# What is sent is stored uncompressed: the quickest level saves the network most for the time it takes.
_LEVEL: Final = 1
_AHEAD: Final = 4 * MiB // _GRAIN
"""Grains that are read before the first of them is written, for each thread."""
_PIECE: Final = MiB


def stream(source: DiskSource, *, threads: int | None = None) -> Iterator[bytes]:
    """Yield the image of a disk, in pieces of about 1 MiB.

    Args:
        threads: How many compress; by default as many as there are processors, 8 at most.
    """
    piece = bytearray()
    for part in _parts(source, threads or min(8, os.cpu_count() or 1)):
        piece += part
        if len(piece) >= _PIECE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def _parts(source: DiskSource, threads: int) -> Iterator[bytes]:
    capacity = -(-source.size // _SECTOR)
    tables = -(-source.size // (_GRAIN * _ENTRIES))
    yield _header(capacity, _AT_THE_END)
    yield _descriptor(capacity).ljust((_OVERHEAD - 1) * _SECTOR, b"\0")
    position = _OVERHEAD
    directory = [0] * tables
    table: list[int] = []
    current = 0

    def end_table() -> Iterator[bytes]:
        nonlocal position, table
        if table:
            part = _marked(_TABLE, struct.pack(f"<{_ENTRIES}I", *table))
            directory[current] = position + 1
            position += len(part) // _SECTOR
            table = []
            yield part

    for number, data in _deflated(source, threads):
        owner, entry = divmod(number, _ENTRIES)
        if owner != current:
            yield from end_table()
            current = owner
        table = table or [0] * _ENTRIES
        table[entry] = position
        part = _padded(struct.pack("<QI", number * _GRAIN // _SECTOR, len(data)) + data)
        position += len(part) // _SECTOR
        yield part
    yield from end_table()
    part = _marked(_DIRECTORY, struct.pack(f"<{tables}I", *directory))
    yield part
    yield _marked(_FOOTER, _header(capacity, position + 1))
    yield bytes(_SECTOR)


def _deflated(source: DiskSource, threads: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the compressed content of each grain that is not all zeros, in order."""
    waiting: deque[tuple[int, Future[bytes]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="deflate") as pool:
        try:
            for number in _grains(source):
                waiting.append((number, pool.submit(_deflate, source, number)))
                if len(waiting) > _AHEAD * threads:
                    first, done = waiting.popleft()
                    if data := done.result():
                        yield first, data
            for first, done in waiting:
                if data := done.result():
                    yield first, data
        finally:
            for _, one in waiting:
                one.cancel()


def _grains(source: DiskSource) -> Iterator[int]:
    """Yield the numbers of the grains that may hold data, each once, in order."""
    begin = 0
    for extent in source.extents():
        first, end = max(begin, extent.start // _GRAIN), -(-extent.end // _GRAIN)
        yield from range(first, end)
        begin = max(begin, end)


def _deflate(source: DiskSource, number: int) -> bytes:
    """Return a compressed grain; nothing for one of zeros."""
    start = number * _GRAIN
    data = bytearray(_GRAIN)  # the last one of a disk may be longer than what is left of it
    source.read_into(start, memoryview(data)[: min(_GRAIN, source.size - start)])
    return b"" if data == _ZEROS else zlib.compress(data, _LEVEL)


def _header(capacity: int, directory: int) -> bytes:
    return struct.pack(
        "<4sIIQQQQIQQQB4sH433x",
        b"KDMV", 3, _FLAGS, capacity, _GRAIN // _SECTOR, 1, _DESCRIPTOR, _ENTRIES, 0, directory, _OVERHEAD,
        0, b"\n \r\n", _DEFLATE,
    )  # fmt: skip


def _descriptor(capacity: int) -> bytes:
    cylinders = min(capacity // (255 * 63), 65535)
    return (
        f"# Disk DescriptorFile\nversion=1\nCID={secrets.token_hex(4)}\nparentCID=ffffffff\n"
        f'createType="streamOptimized"\n\n# Extent description\nRW {capacity} SPARSE "disk.vmdk"\n\n'
        f'# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = "7"\nddb.adapterType = "lsilogic"\n'
        f'ddb.geometry.cylinders = "{cylinders}"\nddb.geometry.heads = "255"\nddb.geometry.sectors = "63"\n'
    ).encode("ascii")


def _marked(kind: int, data: bytes) -> bytes:
    """Return metadata behind the marker that says what it is, and how many sectors it has."""
    body = _padded(data)
    return struct.pack("<QII496x", len(body) // _SECTOR, 0, kind) + body


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // _SECTOR) * _SECTOR, b"\0")
