"""Every kind of disk keeps the contract."""

import pytest

from vmkeep.disks.images import ImageSource, ImageTarget
from vmkeep.hypervisors.memory import MemoryDisk
from vmkeep.testing.disks import SIZE, DiskContract


class TestMemoryDisk(DiskContract):
    def make_target(self):
        self.disk = MemoryDisk(SIZE)
        return self.disk

    def open_source(self):
        return self.disk


class ImageContract(DiskContract):
    format = "raw"

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        self.path = tmp_path / f"disk.{self.format}"

    def make_target(self):
        return ImageTarget(self.path, self.format, size=SIZE, what="VM db1: disk root")

    def open_source(self):
        return ImageSource(self.path, self.format, what="VM db1: disk root")


class TestRawImage(ImageContract):
    pass


@pytest.mark.integration
class TestQcow2Image(ImageContract):
    format = "qcow2"


@pytest.mark.integration
class TestVmdkImage(ImageContract):
    format = "vmdk"


@pytest.mark.integration
class TestVhdxImage(ImageContract):
    format = "vhdx"

    # It reports all of itself as one extent.
    def test_extents_are_in_order_inside_the_disk_and_cover_all_data(self):
        with self.written((0, b"x")) as source:
            assert sum(extent.length for extent in source.extents()) == SIZE
