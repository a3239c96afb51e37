"""The merged index as a file of this machine: mapped into memory, so that opening it costs next to nothing.

    "VMKMERG" 0x01 | length of the header u32 | BLAKE3 of header and tables 32
    header            JSON: the index objects it was made of, the dead packs, how many of everything
    table             as in an index object   the packs that each index object mentions, one behind another
    table             as in an index object   the packs of the merged index
    prefixes          u64, sorted             the first eight bytes of the ids
    entries           see `index`             in the same order

It is a copy of what lies in the store and can be removed at any time. It holds names of packs and chunks,
which are random or keyed, and no content. A damaged entry is noticed like a damaged chunk.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import weakref
from dataclasses import dataclass
from itertools import islice
from operator import eq
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from blake3 import blake3

from vmkeep.repository.index import ENTRY, PACK_SIZE, Index, PackInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

_MAGIC: Final = b"VMKMERG\x01"
_HEAD: Final = struct.Struct("<8sI32s")
_PREFIX: Final = np.dtype("<u8")
_BLOCK: Final = 64 * 1024
"""Entries that are put in order at once."""
_ALIGNED: Final = 64


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged index, and what it was made of."""

    index: Index
    mentioned: Mapping[str, Sequence[PackInfo]]
    """The packs in each index object, also those that are dead."""
    dead: frozenset[bytes]
    """The packs that were left out."""


def read(path: Path) -> Merged | None:
    """Return what the file holds; `None`: there is none, or it is damaged, or of another version."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def write(
    path: Path, parts: Sequence[Index], mentioned: Mapping[str, Sequence[PackInfo]], dead: frozenset[bytes]
) -> None:
    """Write the merged index of *parts* without the packs in *dead*; memory grows with the prefixes only.

    Raises:
        OSError: the disk is full, or may not be written, or another process writes one now.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # One name for all: what a killed process left is written over, and does not pile up.
    new = path.with_name(f".{path.name}.new")
    with open(os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:  # noqa: PTH123
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), new.stat()):
            raise BlockingIOError(f"{new}: another process has just put its own in place")
        file.truncate()
        _write(file, parts, mentioned, dead)
        file.flush()
        new.replace(path)


class _Rows:
    """Reads single entries, instead of mapping them.

    Where the system keeps files in large pieces, each place that is touched in a map adds a MiB to the
    process.
    """

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file, self._start = os.dup(file.fileno()), start
        weakref.finalize(self, os.close, self._file)

    def __call__(self, at: int) -> np.void:
        data = os.pread(self._file, ENTRY.itemsize, self._start + at * ENTRY.itemsize)
        row: np.void = np.frombuffer(data, ENTRY)[0]
        return row


def _read(file: BinaryIO) -> Merged | None:
    magic, length, digest = _HEAD.unpack(file.read(_HEAD.size))
    if magic != _MAGIC:
        return None
    header = file.read(length)
    fields = json.loads(header)
    tables = file.read(PACK_SIZE * (sum(fields["counts"]) + fields["packs"]))
    if blake3(header + tables).digest() != digest:
        return None
    packs = PackInfo.table(tables)
    mentioned = {
        key: tuple(islice(packs, count)) for key, count in zip(fields["keys"], fields["counts"], strict=True)
    }
    dead = frozenset(map(bytes.fromhex, fields["dead"]))
    kept = _kept(memoryview(tables)[PACK_SIZE * sum(fields["counts"]) :], mentioned, dead)
    count, start = fields["entries"], _aligned(_HEAD.size + length + len(tables))
    entries_at = _aligned(start + count * _PREFIX.itemsize)
    if os.fstat(file.fileno()).st_size != entries_at + count * ENTRY.itemsize:
        return None
    prefixes, entries = _map(file, _PREFIX, start, count), _map(file, ENTRY, entries_at, count)
    return Merged(Index(kept, entries, prefixes, _Rows(file, entries_at)), mentioned, dead)


def _kept(
    table: memoryview, mentioned: Mapping[str, Sequence[PackInfo]], dead: frozenset[bytes]
) -> tuple[PackInfo, ...]:
    """Return the packs in *table*: the very objects of the index objects, if these are the same in order."""
    same = tuple(pack for each in mentioned.values() for pack in each if pack.name not in dead)
    if len(same) * PACK_SIZE == len(table) and all(map(eq, same, PackInfo.table(table))):
        return same
    return tuple(PackInfo.table(table))


def _map(file: BinaryIO, kind: np.dtype[Any], start: int, count: int) -> NDArray[Any]:
    if count == 0:
        return np.empty(0, kind)
    return np.memmap(file, kind, "r", start, (count,))


def _write(
    file: BinaryIO,
    parts: Sequence[Index],
    mentioned: Mapping[str, Sequence[PackInfo]],
    dead: frozenset[bytes],
) -> None:
    kept = [[pack.name not in dead for pack in part.packs] for part in parts]
    packs = [pack for part in parts for pack in part.packs if pack.name not in dead]
    order, bounds, numbers = _ordered(parts, kept)
    header = json.dumps(
        {
            "keys": list(mentioned),
            "counts": [len(each) for each in mentioned.values()],
            "dead": sorted(name.hex() for name in dead),
            "packs": len(packs),
            "entries": len(order),
        }
    ).encode()
    tables = _table(pack for each in mentioned.values() for pack in each) + _table(packs)
    file.write(_HEAD.pack(_MAGIC, len(header), blake3(header + tables).digest()) + header + tables)
    for kind in ("prefixes", "entries"):
        file.write(bytes(_aligned(file.tell()) - file.tell()))
        for at in range(0, len(order), _BLOCK):
            block = order[at : at + _BLOCK]
            gathered = _gathered(parts, bounds, numbers, block, prefixes=kind == "prefixes")
            file.write(gathered.tobytes())


def _ordered(
    parts: Sequence[Index], kept: Sequence[Sequence[bool]]
) -> tuple[NDArray[np.int64], list[int], list[NDArray[np.uint32]]]:
    """Return which entries stay, in order of prefix, where each part begins, and the new numbers of packs."""
    bounds, numbers, prefixes, stays = [0], [], [], []
    first = 0
    for part, keep in zip(parts, kept, strict=True):
        flags = np.array(keep, bool)
        numbers.append((np.cumsum(flags, dtype=np.uint32) - 1 + first).astype(np.uint32))
        first += int(flags.sum())
        bounds.append(bounds[-1] + len(part))
        prefixes.append(part.prefixes)
        stays.append(
            flags[part.entries["pack"]] if len(part) and not flags.all() else np.ones(len(part), bool)
        )
    together = np.concatenate([*prefixes, np.empty(0, _PREFIX)])
    order = np.argsort(together, kind="stable")
    if stays and not all(each.all() for each in stays):
        order = order[np.concatenate(stays)[order]]
    return order, bounds, numbers


def _gathered(
    parts: Sequence[Index],
    bounds: Sequence[int],
    numbers: Sequence[NDArray[np.uint32]],
    block: NDArray[np.int64],
    *,
    prefixes: bool,
) -> NDArray[Any]:
    """Return the entries, or the prefixes, with these numbers."""
    result = np.empty(len(block), _PREFIX if prefixes else ENTRY)
    for number, part in enumerate(parts):
        rows = np.flatnonzero((block >= bounds[number]) & (block < bounds[number + 1]))
        if not rows.size:
            continue
        chosen = block[rows] - bounds[number]
        if prefixes:
            result[rows] = part.prefixes[chosen]
            continue
        entries = part.entries[chosen]
        entries["pack"] = numbers[number][entries["pack"]]
        result[rows] = entries
    return result


def _table(packs: Iterable[PackInfo]) -> bytes:
    return b"".join(pack.encode() for pack in packs)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
