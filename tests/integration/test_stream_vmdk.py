"""An image that is made while it is sent is what qemu-img and every other reader take it for."""

import random
import subprocess

import pytest

from vmkeep.disks import images, stream_vmdk
from vmkeep.disks.device import Extent
from vmkeep.disks.raw import RawSource, RawTarget
from vmkeep.hypervisors.memory_disk import MemoryDisk
from vmkeep.testing.disks import read
from vmkeep.units import GiB, KiB, MiB

pytestmark = pytest.mark.integration


def written(path, size, parts, seed=1):
    noise = random.Random(seed)
    with RawTarget(path, size=size) as disk:
        for offset, length in parts:
            disk.write(offset, noise.randbytes(length))
    return path


def streamed(raw, path, **how):
    with RawSource(raw) as source:
        path.write_bytes(b"".join(stream_vmdk.stream(source, **how)))
    return path


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (4 * MiB, []),
        (4 * MiB, [(0, 4 * MiB)]),
        (MiB + 3 * KiB, [(0, 10), (MiB, 3 * KiB)]),  # ends within a grain
        (100 * MiB, [(5, 1), (31 * MiB, 3 * MiB), (64 * MiB - 1, 2), (100 * MiB - 1, 1)]),  # over tables
        (20 * GiB, [(0, MiB), (17 * GiB + 1, 70 * KiB)]),  # most tables are empty
    ],
    ids=["empty", "full", "odd", "over tables", "large"],
)
def test_qemu_reads_what_was_written(tmp_path, size, parts, threads):
    raw = written(tmp_path / "disk.raw", size, parts)
    image = streamed(raw, tmp_path / "disk.vmdk", threads=threads)

    told = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "vmdk", str(raw), str(image)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    assert images.inspect(image, "vmdk", what="disk").size == size


def test_qemu_writes_the_same_disk_out_of_it(tmp_path):
    raw = written(tmp_path / "disk.raw", 70 * MiB, [(0, 100), (33 * MiB, MiB)])
    image = streamed(raw, tmp_path / "disk.vmdk")
    subprocess.run(
        ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(image), str(tmp_path / "back.raw")], check=True
    )

    assert (tmp_path / "back.raw").read_bytes() == raw.read_bytes()


def test_zeros_take_no_room(tmp_path):
    raw = written(tmp_path / "disk.raw", 64 * MiB, [])
    raw.write_bytes(bytes(64 * MiB))  # allocated, and zeros all the same

    assert streamed(raw, tmp_path / "disk.vmdk").stat().st_size < 100 * KiB


def test_extents_that_share_a_grain_make_it_once(tmp_path):
    class Split(MemoryDisk):
        def extents(self):
            yield from (Extent(0, 100), Extent(4 * KiB, 100), Extent(60 * KiB, 8 * KiB))

    disk = Split(MiB)
    disk.write(0, b"a" * 68 * KiB)
    path = tmp_path / "disk.vmdk"
    path.write_bytes(b"".join(stream_vmdk.stream(disk)))

    with images.reader(path, "vmdk", what="disk") as source:
        assert read(source, 0, 68 * KiB) == b"a" * 68 * KiB


def test_a_disk_that_cannot_be_read_is_an_error_and_no_end():
    class Broken(MemoryDisk):
        def read_into(self, offset, buffer):
            if offset >= MiB:
                raise OSError("cannot be read")
            super().read_into(offset, buffer)

    disk = Broken(4 * MiB)
    disk.write(0, b"a" * 4 * MiB)

    with pytest.raises(OSError, match="cannot be read"):
        list(stream_vmdk.stream(disk))
