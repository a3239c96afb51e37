"""A disk that is shown over NBD is what it is, and is hardly read."""

import random

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.disks import shown
from vmkeep.disks.shown import ShownDisk
from vmkeep.hypervisors.memory_disk import MemoryDisk
from vmkeep.units import KiB, MiB

SIZE = 2 * MiB + 1536


class Counted(MemoryDisk):
    reads = 0

    def read_into(self, offset, buffer):
        self.reads += 1
        super().read_into(offset, buffer)


def disk():
    made = Counted(SIZE)
    made.write(100 * KiB, random.Random(1).randbytes(500 * KiB))
    made.write(SIZE - 512, b"x" * 512)
    return made


def content(source, offset, length):
    buffer = bytearray(length)
    source.read_into(offset, memoryview(buffer))
    return bytes(buffer)


@given(st.integers(0, SIZE - 1), st.integers(1, MiB))
def test_any_range_is_what_the_disk_holds(offset, length):
    length = min(length, SIZE - offset)
    source = disk()

    shows = ShownDisk(source)
    assert content(shows, offset, length) == content(source, offset, length)
    told = [*shows.extents_within(offset, length)]
    assert all(offset <= one.start < one.end <= offset + length for one in told)
    holes = bytearray(content(source, offset, length))
    for one in told:
        holes[one.start - offset : one.end - offset] = bytes(one.length)
    assert not any(holes)


def test_what_was_read_is_not_read_again_and_holes_never_are():
    source = disk()
    shows = ShownDisk(source)
    for offset in range(256 * KiB, 512 * KiB, 4 * KiB):
        content(shows, offset, 4 * KiB)
    content(shows, MiB, 4 * KiB)

    assert source.reads == 1


def test_only_the_last_blocks_are_kept(monkeypatch):
    monkeypatch.setattr(shown, "_KEPT", 1)
    source = disk()
    shows = ShownDisk(source)
    for offset in (100 * KiB, 300 * KiB, 100 * KiB):
        content(shows, offset, 4 * KiB)

    assert source.reads == 3
