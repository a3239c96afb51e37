"""Raw images are written past the page cache where that can be, and are the same where it cannot."""

import errno
import os
import random

import pytest

from vmkeep.disks.direct import DirectWriter
from vmkeep.disks.raw import RawTarget
from vmkeep.units import KiB, MiB

SIZE = 4 * MiB + 512
PIECES = [(0, 4096), (4096, MiB), (2 * MiB + 512, 8192), (3 * MiB, MiB + 512)]


def written(path):
    data = random.Random(7).randbytes(SIZE)
    expected = bytearray(SIZE)
    with RawTarget(path, size=SIZE) as target:
        for offset, length in PIECES:
            target.write(offset, data[offset : offset + length])
            expected[offset : offset + length] = data[offset : offset + length]
        target.flush()
    return path.read_bytes(), bytes(expected)


def test_aligned_and_unaligned_writes_mix(tmp_path):
    found, expected = written(tmp_path / "disk.raw")

    assert found == expected


@pytest.mark.parametrize("where", ["open", "pwrite"])
def test_a_file_system_without_direct_writes_gets_the_same_bytes(tmp_path, monkeypatch, where):
    real_open, real_write = os.open, os.pwrite
    direct = set()

    def open_(path, flags, *rest):
        if flags & os.O_DIRECT and where == "open":
            raise OSError(errno.EINVAL, "no such writes here")
        fd = real_open(path, flags & ~os.O_DIRECT, *rest)
        if flags & os.O_DIRECT:
            direct.add(fd)
        return fd

    def pwrite(fd, data, offset):
        if fd in direct:
            raise OSError(errno.EINVAL, "no such writes here")
        return real_write(fd, data, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", pwrite)

    found, expected = written(tmp_path / "disk.raw")

    assert found == expected
    assert bool(direct) == (where == "pwrite")


def test_what_is_not_aligned_is_left_to_the_caller(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MiB))
    writer = DirectWriter(path)
    try:
        assert writer.write(512, memoryview(bytes(8 * KiB))) == 0
        assert writer.write(0, memoryview(bytes(512))) == 0
        assert writer.write(0, memoryview(bytes(8 * KiB + 1))) in {8 * KiB, 0}
    finally:
        writer.close()
        writer.close()


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MiB))
    writer = DirectWriter(path)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(writer, "_fd", writer._fd if writer._fd >= 0 else os.open(path, os.O_WRONLY))
    with pytest.raises(OSError, match="no space"):
        writer.write(0, memoryview(bytes(4096)))
    monkeypatch.undo()
    writer.close()
