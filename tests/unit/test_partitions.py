"""Partition tables and superblocks, made by real tools and by hand, whole and damaged."""

import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmkeep.disks import tools
from vmkeep.disks.partitions import read_partitions
from vmkeep.disks.raw import RawSource
from vmkeep.disks.superblocks import identify
from vmkeep.errors import SourceError
from vmkeep.hypervisors.memory import MemoryDisk
from vmkeep.testing.guests import Volume, build_disk, build_filesystem, write_into
from vmkeep.units import MiB

UUID = "0b8f5b50-1111-4222-8333-444455556666"


def partitioned(path, script, size=64 * MiB):
    with path.open("xb") as file:
        file.truncate(size)
    subprocess.run(
        [tools.find("sfdisk"), "-q", str(path)], input=script.encode(), check=True, capture_output=True
    )
    return path


def read(path):
    with RawSource(path) as source:
        return read_partitions(source)


@pytest.fixture
def gpt(tmp_path):
    return partitioned(
        tmp_path / "disk",
        "label: gpt\nsize=8192, name=boot, uuid=AAAAAAAA-0000-4000-8000-000000000001\n"
        "size=16384, name=root\n",
    )


def test_gpt_partitions_are_found_with_name_and_uuid(gpt):
    boot, root = read(gpt)

    assert (boot.number, boot.start, boot.length, boot.name) == (1, MiB, 4 * MiB, "boot")
    assert boot.uuid == "aaaaaaaa-0000-4000-8000-000000000001"
    assert (root.start, root.length) == (5 * MiB, 8 * MiB)


def test_a_damaged_gpt_is_read_from_its_backup(gpt):
    whole = read(gpt)
    write_into(gpt, 512 + 60, b"damaged")

    assert read(gpt) == whole


def test_a_gpt_damaged_in_both_places_is_refused(gpt):
    write_into(gpt, 512 + 60, b"damaged")
    write_into(gpt, 64 * MiB - 512 + 60, b"damaged")

    with pytest.raises(SourceError, match="neither copy"):
        read(gpt)


def test_mbr_partitions_with_logical_ones_are_found(tmp_path):
    script = "label: dos\nlabel-id: 0xcafe1234\nsize=8192, type=83\ntype=5\n"
    script += "size=4096, type=83\nsize=4096, type=82\n"

    found = read(partitioned(tmp_path / "disk", script))
    assert [(part.number, part.length, part.type) for part in found] == [
        (1, 4 * MiB, "83"), (5, 2 * MiB, "83"), (6, 2 * MiB, "82"),
    ]  # fmt: skip
    assert found[0].uuid == "cafe1234-01"


def test_a_chain_of_logical_partitions_that_bites_its_tail_ends(tmp_path):
    disk = partitioned(tmp_path / "disk", "label: dos\nsize=8192\ntype=5\nsize=4096\nsize=4096\n")
    with RawSource(disk) as source:
        extended = struct.unpack_from("<I", _sector(source, 0), 446 + 16 + 8)[0]
    write_into(disk, extended * 512 + 446 + 16 + 4, b"\x05\0\0\0\x01\0\0\0")
    sector = disk.read_bytes()[extended * 512 : extended * 512 + 512]
    write_into(disk, (extended + 1) * 512, sector)

    with pytest.raises(SourceError, match="do not end"):
        read(disk)


def _sector(source, number):
    buffer = bytearray(512)
    source.read_into(number * 512, memoryview(buffer))
    return bytes(buffer)


def test_a_partition_behind_the_end_of_the_disk_is_refused(gpt):
    with gpt.open("r+b") as file:
        file.truncate(8 * MiB)

    with pytest.raises(SourceError, match="partition 2 is bytes"):
        read(gpt)


def test_a_disk_without_a_table_is_one_partition(tmp_path):
    (tmp_path / "tree").mkdir()
    build_filesystem(tmp_path / "disk", Volume(tmp_path / "tree", size=8 * MiB, label="data", uuid=UUID))

    (whole,) = read(tmp_path / "disk")
    assert (whole.number, whole.length) == (0, 8 * MiB)
    assert (whole.filesystem.kind, whole.filesystem.uuid, whole.filesystem.label) == ("ext4", UUID, "data")


def test_an_empty_disk_is_one_partition_with_nothing_in_it():
    (whole,) = read_partitions(MemoryDisk(4 * MiB))

    assert (whole.number, whole.filesystem) == (0, None)


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_the_ext_family_is_told_apart(tmp_path, kind):
    (tmp_path / "tree").mkdir()
    build_disk(tmp_path / "disk", [Volume(tmp_path / "tree", size=16 * MiB, kind=kind)])

    assert read(tmp_path / "disk")[0].filesystem.kind == kind


def test_swap_is_recognized(tmp_path):
    with (tmp_path / "swap").open("xb") as file:
        file.truncate(4 * MiB)
    tools.run("mkswap", "-q", "-U", UUID, "-L", "swapped", str(tmp_path / "swap"), timeout_s=60)

    (whole,) = read(tmp_path / "swap")
    assert (whole.filesystem.kind, whole.filesystem.uuid, whole.filesystem.label) == ("swap", UUID, "swapped")


# From the format descriptions named in the module: (offset, bytes) and what it must be.
BY_HAND = {
    "xfs": [(0, b"XFSB"), (108, b"data")],
    "btrfs": [(65536 + 64, b"_BHRfS_M"), (65536 + 0x12B, b"pool")],
    "luks": [(0, b"LUKS\xba\xbe\0\2"), (168, UUID.encode())],
    "lvm2": [(512, b"LABELONE"), (512 + 24, b"LVM2 001"), (512 + 32, b"abcdefghijklmnopqrstuvwxyz012345")],
    "iso9660": [(32769, b"CD001"), (32808, b"DEBIAN 12")],
    "ntfs": [(3, b"NTFS    "), (510, b"\x55\xaa")],
    "vfat": [(82, b"FAT32   "), (67, b"\x78\x56\x34\x12"), (71, b"EFI        "), (510, b"\x55\xaa")],
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_superblock_is_recognized(kind):
    disk = MemoryDisk(MiB)
    for offset, data in BY_HAND[kind]:
        disk.write(offset, data)

    assert identify(disk).kind == kind


def test_a_vfat_serial_is_written_as_blkid_does():
    disk = MemoryDisk(MiB)
    for offset, data in BY_HAND["vfat"]:
        disk.write(offset, data)

    assert (identify(disk).uuid, identify(disk).label) == ("1234-5678", "EFI")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=64)), max_size=8), st.booleans()
)
def test_any_bytes_are_read_or_refused_but_never_crash(parts, signed):
    disk = MemoryDisk(MiB)
    for offset, data in parts:
        disk.write(offset, data)
    if signed:
        disk.write(510, b"\x55\xaa")
        disk.write(512, b"EFI PART")

    try:
        found = read_partitions(disk)
    except SourceError:
        return
    assert all(0 <= part.start <= part.start + part.length <= disk.size for part in found)
