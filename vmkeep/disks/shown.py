"""A disk that is read elsewhere, as an NBD server of ours shows it.

A guest's file systems are read in pieces of some KiB, again and again; each would be a request over the
network. So blocks are read whole, and the last ones are kept. Holes are not read at all.
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from vmkeep.disks.device import Extent
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.disks.device import DiskSource

_BLOCK: Final = 256 * KiB
_KEPT: Final = 256


class ShownDisk:
    """What `nbd_server.serving` takes. Safe to use from several threads."""

    def __init__(self, source: DiskSource) -> None:
        """Show *source*, which stays open as long as this is used."""
        self._source = source
        self._extents = [*source.extents()]
        self._ends = [one.end for one in self._extents]
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes."""
        return self._source.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*."""
        done = 0
        while done < len(buffer):
            index, inside = divmod(offset + done, _BLOCK)
            part = self._block(index)[inside : inside + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def extents_within(self, start: int, length: int) -> Iterator[Extent]:
        """Yield the parts of a range that may hold data, in order, merged."""
        end = start + length
        for one in self._extents[bisect.bisect_right(self._ends, start) :]:
            if one.start >= end:
                return
            first = max(start, one.start)
            yield Extent(first, min(end, one.end) - first)

    def _block(self, index: int) -> bytes:
        with self._lock:
            found = self._blocks.get(index)
            if found is not None:
                self._blocks.move_to_end(index)
                return found
        start = index * _BLOCK
        data = bytearray(min(_BLOCK, self.size - start))
        for one in self.extents_within(start, len(data)):
            self._source.read_into(one.start, memoryview(data)[one.start - start : one.end - start])
        with self._lock:
            self._blocks[index] = bytes(data)
            while len(self._blocks) > _KEPT:
                self._blocks.popitem(last=False)
        return bytes(data)
