"""Mounting what is inside of a disk: by the kernel where it is allowed, and after a power cut."""

import contextlib
import os
import shutil

import pytest

from vmkeep.components.guest import GuestFiles
from vmkeep.disks import exports, mounts, qemu_img, scratch
from vmkeep.disks.device import Image
from vmkeep.disks.partitions import Partition, read_partitions
from vmkeep.disks.raw import RawSource
from vmkeep.disks.superblocks import FileSystem
from vmkeep.errors import DirtyError, UnsupportedError
from vmkeep.fleet.model import VM
from vmkeep.testing.guests import Volume, build_disk, write_into
from vmkeep.testing.shelf import Shelf
from vmkeep.units import MiB

pytestmark = pytest.mark.integration


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/os-release").write_text("ID=debian\n")
    path = tmp_path / "disk.raw"
    build_disk(path, [Volume(tmp_path / "tree", size=32 * MiB)])
    return path


@contextlib.contextmanager
def volume(disk, folder):
    """The only partition of a raw image, behind an overlay that is written into it at the end."""
    overlay = folder / "overlay.qcow2"
    with (
        scratch.scratch_folder() as work,
        exports.exported([(Image("root", disk, "raw"), overlay)], folder=work, what="VM db1") as (found,),
    ):
        yield found.volumes[0]
    qemu_img.commit(overlay)
    overlay.unlink()


needs_kernel = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/loop-control", os.W_OK), reason="needs root and loop devices"
)


@needs_kernel
def test_the_kernel_mounts_a_partition_and_lets_it_go(disk, tmp_path):
    point = tmp_path / "mount"
    point.mkdir()

    # Ext4 stands for xfs and btrfs, whose tools are not everywhere; vmkeep itself never asks for it.
    with volume(disk, tmp_path) as found, mounts._kernel(found, point):
        (point / "written").write_text("by the kernel")
    assert not scratch.mounts_below(tmp_path)
    with (
        volume(disk, tmp_path) as found,
        mounts.mounted(found, found.path.with_name("again"), kernel_mounts=False),
    ):
        assert found.path.with_name("again").joinpath("written").read_text() == "by the kernel"


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_the_kernel_is_only_asked_where_that_was_allowed(tmp_path, kind):
    found = exports.Volume(Partition(1, 0, MiB, filesystem=FileSystem(kind)), tmp_path / "volume")

    with pytest.raises(UnsupportedError, match="kernel_mounts: true"):
        mounts.mounted(found, tmp_path / "mount", kernel_mounts=False).__enter__()


@pytest.mark.parametrize("kind", ["lvm2", "luks"])
def test_what_nobody_can_open_offers_the_whole_disk(kind):
    assert "back its disk up whole" in mounts.refusal(Partition(1, 0, MiB, filesystem=FileSystem(kind)))


@needs_kernel
def test_a_journal_is_replayed_in_the_overlay_and_not_in_the_image(tmp_path, disk):
    shelf = Shelf(tmp_path)
    image = shelf.image("db1")
    image.parent.mkdir(parents=True)
    (tmp_path / "mount").mkdir()
    with volume(disk, tmp_path) as found, mounts._kernel(found, tmp_path / "mount"):
        (tmp_path / "mount/late").write_text("in the journal")
        os.sync()
        # As after a power cut: what the partition holds while it is mounted.
        shutil.copy(found.path, tmp_path / "partition")
    shutil.copy(disk, image)
    write_into(image, MiB, (tmp_path / "partition").read_bytes())
    before = image.read_bytes()
    vm = VM.model_validate({"hypervisor": "shelf", "disks": [{"name": "root", "size": "34MiB"}]})

    with RawSource(image) as source:
        assert read_partitions(source)[0].filesystem.dirty
    machine = shelf.hypervisor.snapshot("g", {"db1": vm}).machines["db1"]
    with GuestFiles(shelf.hypervisor, machine) as files:
        assert files.open().read(b"/late", most=100) == b"in the journal"
    assert image.read_bytes() == before


def test_a_damaged_file_system_is_found_by_its_check(disk):
    write_into(disk, MiB + 4096 * 2, os.urandom(4096 * 2))

    with volume(disk, disk.parent) as found, pytest.raises(DirtyError, match="has errors"):
        mounts.check_ext(found, what="disk root")


def test_without_fuse_one_line_says_what_helps(disk, tmp_path, monkeypatch):
    shelf = Shelf(tmp_path)
    shelf.image("db1").parent.mkdir(parents=True)
    disk.replace(shelf.image("db1"))
    vm = VM.model_validate({"hypervisor": "shelf", "disks": [{"name": "root", "size": "34MiB"}]})
    machine = shelf.hypervisor.snapshot("g", {"db1": vm}).machines["db1"]
    monkeypatch.setattr(os, "access", lambda *_: False)

    with GuestFiles(shelf.hypervisor, machine) as files, pytest.raises(UnsupportedError, match="/dev/fuse"):
        files.open()
