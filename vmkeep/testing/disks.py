"""What every disk target and source must do: run by `tests/contract`, and by other drivers' tests."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vmkeep.errors import SourceError
from vmkeep.units import KiB, MiB

if TYPE_CHECKING:
    from vmkeep.disks.device import DiskSource, DiskTarget

SIZE = 8 * MiB


def read(source: DiskSource, offset: int, length: int) -> bytes:
    """Return a range of a disk."""
    buffer = bytearray(length)
    source.read_into(offset, memoryview(buffer))
    return bytes(buffer)


class DiskContract(ABC):
    """Subclass it, and give `make_target` and `open_source`: the same new disk of `SIZE` bytes."""

    @abstractmethod
    def make_target(self) -> DiskTarget:
        """Return a new disk that reads as zeros."""

    @abstractmethod
    def open_source(self) -> DiskSource:
        """Open the disk that `make_target` made; it is closed already."""

    def written(self, *parts: tuple[int, bytes]) -> DiskSource:
        with self.make_target() as target:
            for offset, data in parts:
                target.write(offset, data)
            target.flush()
        return self.open_source()

    def test_a_new_disk_is_fresh_and_has_the_size_that_was_asked_for(self) -> None:
        with self.make_target() as target:
            assert target.fresh
            assert target.size == SIZE

    def test_what_was_written_is_read_back(self) -> None:
        data = random.Random(1).randbytes(300 * KiB + 5)

        with self.written((MiB + 3, data)) as source:
            assert read(source, MiB + 3, len(data)) == data

    def test_what_was_never_written_reads_as_zeros(self) -> None:
        with self.written((0, b"x")) as source:
            assert read(source, 4 * MiB, 100) == bytes(100)

    def test_extents_are_in_order_inside_the_disk_and_cover_all_data(self) -> None:
        places = (0, 3 * MiB, SIZE - 512)

        with self.written(*((place, b"data" * 128) for place in places)) as source:
            extents = list(source.extents())
        assert all(a.end < b.start for a, b in itertools.pairwise(extents))
        assert all(0 <= extent.start < extent.end <= SIZE for extent in extents)
        assert all(any(e.start <= place < e.end for e in extents) for place in places)

    def test_a_zeroed_range_reads_as_zeros_and_its_neighbours_stay(self) -> None:
        with self.make_target() as target:
            target.write(0, b"\xff" * MiB)
            target.zero(1000, 500 * KiB)
            target.flush()

        with self.open_source() as source:
            assert read(source, 1000, 500 * KiB) == bytes(500 * KiB)
            assert read(source, 0, 1000) + read(source, 1000 + 500 * KiB, 10) == b"\xff" * 1010

    def test_many_threads_read_at_once(self) -> None:
        blocks = [bytes([number]) * (512 * KiB) for number in range(16)]

        source = self.written(*((n * 512 * KiB, b) for n, b in enumerate(blocks)))
        with source, ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: read(source, n * 512 * KiB, 512 * KiB), range(16)))
        assert found == blocks

    def test_many_threads_write_at_once(self) -> None:
        blocks = [bytes([number]) * (512 * KiB) for number in range(16)]

        with self.make_target() as target:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda n: target.write(n * 512 * KiB, blocks[n]), range(16)))
            target.flush()
        with self.open_source() as source:
            assert read(source, 0, SIZE) == b"".join(blocks)

    def test_reading_behind_the_end_is_an_error(self) -> None:
        with self.written((0, b"x")) as source, pytest.raises(SourceError):
            read(source, SIZE - 10, 20)

    def test_writing_behind_the_end_is_an_error(self) -> None:
        with self.make_target() as target, pytest.raises(SourceError):
            target.write(SIZE - 10, bytes(20))

    def test_closing_twice_is_fine(self) -> None:
        source = self.written((0, b"x"))
        source.close()

        source.close()
