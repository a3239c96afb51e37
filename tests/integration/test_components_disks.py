"""Whole disks of powered-off VMs, in every format, there and back."""

import random

import pytest

from vmkeep.components.base import RestoreContext, SaveContext
from vmkeep.components.guest import GuestFiles
from vmkeep.components.open import open_component
from vmkeep.errors import InputError, SourceError
from vmkeep.fleet.model import VM
from vmkeep.hypervisors.images import ImagesHypervisor
from vmkeep.hypervisors.memory import MemoryHypervisor
from vmkeep.testing.chunks import MemoryChunks
from vmkeep.testing.disks import read
from vmkeep.testing.guests import Volume, build_disk
from vmkeep.units import GiB, MiB

FORMATS = ("raw", "qcow2", "vmdk", "vhdx")


def declare(image_format="raw", **components):
    disks = [{"name": name, "size": "64MiB", "format": image_format} for name in ("root", "data")]
    return VM.model_validate({"hypervisor": "shelf", "disks": disks, "components": {"os": {}, **components}})


class Bench:
    """A hypervisor with the VM db1, whose disks hold random data and holes."""

    def __init__(self, hypervisor, folder, vm, image_format="raw"):
        self.hypervisor, self.folder, self.vm = hypervisor, folder, vm
        self.chunks = MemoryChunks()
        hypervisor.configure("db1", vm, apply=True)
        random_bytes = random.Random(7).randbytes
        for disk in ("root", "data"):
            with hypervisor.create_disk("db1", disk, size=64 * MiB, format=image_format) as target:
                for offset in (0, 10 * MiB + 4096, 64 * MiB - 512):
                    target.write(offset, random_bytes(512 if offset > 60 * MiB else 300_000))
                target.flush()
        hypervisor.commit_disks("db1", ["root", "data"])

    def machine(self, name):
        return self.hypervisor.snapshot("g", {name: self.vm}).machines[name]

    def save(self, component="os", parent=None):
        machine = self.machine("db1")
        with GuestFiles(self.hypervisor, machine) as files:
            context = SaveContext(
                "db1", self.vm, component, self.hypervisor, machine, self.chunks, files, self.folder,
                parents=(parent,) if parent else (),
            )  # fmt: skip
            return open_component("db1", self.vm, component).save(context)

    def restore(self, name, saved, **how):
        self.hypervisor.create(name, self.machine("db1").definition, overwrite=True)
        context = RestoreContext(name, saved.name, self.hypervisor, self.chunks, self.folder, **how)
        open_component(name, self.vm, saved.name).restore(context, saved)

    def content(self, name, disk):
        with self.hypervisor.open_disk(self.machine(name), disk) as source:
            return read(source, 0, source.size)


@pytest.fixture(params=["memory", pytest.param("images", marks=pytest.mark.integration)])
def hypervisor(request, tmp_path):
    return MemoryHypervisor() if request.param == "memory" else ImagesHypervisor("shelf", tmp_path)


@pytest.fixture
def bench(hypervisor, tmp_path):
    return Bench(hypervisor, tmp_path, declare())


def test_all_disks_come_back_into_a_new_vm(bench):
    bench.restore("db2", bench.save())

    for disk in ("root", "data"):
        assert bench.content("db2", disk) == bench.content("db1", disk)


def test_a_disk_comes_back_over_what_changed(bench):
    saved, before = bench.save(), bench.content("db1", "root")
    with bench.hypervisor.create_disk("db1", "root", size=64 * MiB, format="raw") as target:
        target.write(5 * MiB, b"damage")
    bench.hypervisor.commit_disks("db1", ["root"])

    bench.restore("db1", saved)
    assert bench.content("db1", "root") == before


def test_a_restore_that_breaks_off_leaves_all_disks_as_they_were(bench):
    saved, before = bench.save(), bench.content("db1", "root")
    bench.chunks._chunks.popitem()

    with pytest.raises(KeyError):
        bench.restore("db1", saved)
    assert bench.content("db1", "root") == before
    assert not list(bench.folder.glob("db1/.*"))


def test_a_disk_that_another_component_claims_is_not_saved_twice(bench):
    bench.vm = declare(filesystems={"data": {"disk": "data"}})

    assert list(bench.save("os").disks) == ["root"]
    assert list(bench.save("filesystems.data").disks) == ["data"]


def test_a_disk_that_nobody_touched_is_not_read_again(bench):
    first = bench.save()

    second = bench.save(parent=first)
    assert (second.stats.read, second.disks) == (0, first.disks)


def test_a_disk_that_was_written_is_read_again(bench):
    first = bench.save()
    with bench.hypervisor.create_disk("db1", "root", size=64 * MiB, format="raw") as target:
        target.write(0, b"new")
    bench.hypervisor.commit_disks("db1", ["root"])

    second = bench.save(parent=first)
    assert second.disks["root"] != first.disks["root"]
    assert second.disks["data"] == first.disks["data"]


def test_holes_are_not_read(bench):
    assert bench.save().stats.read < 16 * MiB


@pytest.mark.parametrize("how", [{"paths": ("/etc",)}, {"folder": "out"}])
def test_a_whole_disk_has_no_single_files(bench, how):
    with pytest.raises(InputError, match="saved as whole disks"):
        bench.restore("db2", bench.save(), **how)


@pytest.mark.integration
def test_files_come_out_of_disks_that_are_no_images_here(tmp_path):
    bench = Bench(MemoryHypervisor(), tmp_path, declare(filesystems={"etc": {"path": "/etc"}}))
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/motd").write_text("hello")
    build_disk(tmp_path / "disk.raw", [Volume(tmp_path / "tree", size=32 * MiB)], size=64 * MiB)
    bench.hypervisor.disk("db1", "root").write(0, (tmp_path / "disk.raw").read_bytes())

    bench.restore("db1", bench.save("filesystems.etc"), folder=tmp_path / "out")
    assert [path.read_text() for path in (tmp_path / "out").rglob("motd")] == ["hello"]


def test_a_vm_without_images_takes_no_files(tmp_path):
    bench = Bench(MemoryHypervisor(), tmp_path, declare(filesystems={"etc": {"path": "/etc"}}))
    saved = bench.save()

    with pytest.raises(SourceError, match="restore its os component first"):
        bench.restore("db2", type(saved)("filesystems.etc"))


@pytest.mark.integration
@pytest.mark.parametrize("image_format", FORMATS)
def test_a_disk_comes_back_in_its_own_format(tmp_path, image_format):
    bench = Bench(ImagesHypervisor("shelf", tmp_path), tmp_path, declare(image_format), image_format)

    bench.restore("db2", bench.save())
    assert bench.content("db2", "root") == bench.content("db1", "root")
    image = tmp_path / "db2" / f"root.{image_format}"
    assert image.stat().st_blocks * 512 < 16 * MiB


@pytest.mark.integration
def test_an_unknown_component_is_named():
    with pytest.raises(InputError, match=r"VM db1 has no component databases\.orders"):
        open_component("db1", declare(), "databases.orders")


@pytest.mark.integration
def test_a_huge_empty_disk_costs_nothing(tmp_path):
    hypervisor = ImagesHypervisor("shelf", tmp_path)
    disks = [{"name": "root", "size": "2TiB", "format": "raw"}]
    vm = VM.model_validate({"hypervisor": "shelf", "disks": disks})
    hypervisor.configure("db1", vm, apply=True)

    machine = hypervisor.snapshot("g", {"db1": vm}).machines["db1"]
    with hypervisor.open_disk(machine, "root") as source:
        assert list(source.extents()) == []
        assert source.size == 2048 * GiB
