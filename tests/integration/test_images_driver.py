"""The `images` driver against real QEMU tools and a real virtual machine."""

# ruff: noqa: PTH208  (names are what is compared)

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vmkeep.disks import images, journal, locking, qemu_img
from vmkeep.disks.raw import RawSource
from vmkeep.errors import InputError, SourceChangedError, SourceError, UnsupportedError
from vmkeep.fleet.model import ImagesHypervisor as ImagesConfig
from vmkeep.fleet.model import KeyReference, LibvirtHypervisor, VsphereHypervisor
from vmkeep.hypervisors import open as opening
from vmkeep.hypervisors.images import ImagesHypervisor
from vmkeep.testing.disks import read
from vmkeep.testing.hypervisors import declare
from vmkeep.units import MiB

pytestmark = pytest.mark.integration

FORMATS = ("raw", "qcow2", "vmdk", "vhdx")


@contextlib.contextmanager
def virtual_machine(image, image_format):
    """Run a real QEMU on *image*, paused before its first instruction."""
    monitor = image.parent / "monitor"
    command = [
        "qemu-system-x86_64", "-S", "-accel", "tcg", "-display", "none", "-m", "32", "-nodefaults",
        "-drive", f"file={image},format={image_format},if=virtio",
        "-qmp", f"unix:{monitor},server=on,wait=off",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        while not monitor.exists() and process.poll() is None:
            time.sleep(0.02)
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.settimeout(60)
            connection.connect(str(monitor))
            # It greets early, and answers when all of the machine is there.
            connection.sendall(b'{"execute": "qmp_capabilities"} {"execute": "query-status"}')
            answers = b""
            while b'"status"' not in answers and (part := connection.recv(4096)):
                answers += part
        yield process
    finally:
        process.kill()
        process.communicate()


def one_disk(tmp_path, image_format):
    hypervisor = ImagesHypervisor("shelf", tmp_path)
    vm = declare(disks=[{"name": "root", "size": "16MiB", "format": image_format}])
    hypervisor.configure("db1", vm, apply=True)
    return hypervisor, vm, tmp_path / "db1" / f"root.{image_format}"


def leftovers():
    return [path.name for path in Path(tempfile.gettempdir()).glob(f"vmkeep-{os.getpid()}-*")]


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_vm_that_runs_is_not_saved(tmp_path, image_format):
    hypervisor, vm, image = one_disk(tmp_path, image_format)

    with virtual_machine(image, image_format), pytest.raises(SourceChangedError, match=r"VM db1.*in use"):
        hypervisor.snapshot("g", {"db1": vm})


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_vm_does_not_start_on_an_image_that_is_being_read(tmp_path, image_format):
    hypervisor, vm, image = one_disk(tmp_path, image_format)
    machine = hypervisor.snapshot("g", {"db1": vm}).machines["db1"]

    with hypervisor.open_disk(machine, "root"), virtual_machine(image, image_format) as process:
        assert process.wait(60) != 0
        assert b"lock" in process.stderr.read()


def test_a_vm_that_started_and_stopped_meanwhile_is_noticed(tmp_path):
    hypervisor, vm, image = one_disk(tmp_path, "raw")
    machine = hypervisor.snapshot("g", {"db1": vm}).machines["db1"]
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 4k", str(image)], check=True, capture_output=True)

    with pytest.raises(SourceChangedError, match="changed since its snapshot"):
        hypervisor.open_disk(machine, "root")


def test_a_running_vm_is_not_overwritten_by_a_restore(tmp_path):
    hypervisor, _, image = one_disk(tmp_path, "qcow2")
    before = image.stat().st_ino
    hypervisor.create_disk("db1", "root", size=MiB, format="qcow2").close()

    with virtual_machine(image, "qcow2"), pytest.raises(SourceChangedError, match="in use"):
        hypervisor.commit_disks("db1", ["root"])
    assert image.stat().st_ino == before


def test_two_readers_may_share_an_image(tmp_path):
    _, _, image = one_disk(tmp_path, "raw")

    with RawSource(image), RawSource(image) as second:
        assert read(second, 0, 10) == bytes(10)


def test_a_writer_keeps_readers_out(tmp_path):
    _, _, image = one_disk(tmp_path, "raw")

    with locking.locked(image, what="root", write=True), pytest.raises(SourceChangedError):
        RawSource(image)


@pytest.mark.parametrize("image_format", ["qcow2", "vmdk", "vhdx"])
def test_a_damaged_image_is_a_clear_error_and_leaves_nothing_behind(tmp_path, image_format):
    hypervisor, vm, image = one_disk(tmp_path, image_format)
    with image.open("r+b") as file:
        file.write(os.urandom(300 * 1024))

    with pytest.raises(SourceError, match=r"VM db1: disk root.*cannot be read as an image"):
        hypervisor.snapshot("g", {"db1": vm})
    assert not leftovers()


def test_an_unreadable_image_is_a_clear_error(tmp_path):
    hypervisor, vm, image = one_disk(tmp_path, "raw")
    image.unlink()
    image.mkdir()

    with pytest.raises(SourceError, match="VM db1: disk root"):
        hypervisor.snapshot("g", {"db1": vm})


def test_a_missing_image_is_a_clear_error(tmp_path):
    hypervisor, vm, image = one_disk(tmp_path, "qcow2")
    image.unlink()

    with pytest.raises(SourceError, match=r"no image .* for disk root"):
        hypervisor.snapshot("g", {"db1": vm})


def test_an_image_that_borrows_from_a_file_elsewhere_is_refused(tmp_path):
    hypervisor, vm, image = one_disk(tmp_path, "qcow2")
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(MiB))
    image.unlink()
    qemu_img.create(image, "qcow2", 16 * MiB, backing=(secret, "raw"))

    with pytest.raises(SourceError, match="not a file in"):
        hypervisor.snapshot("g", {"db1": vm})


def test_an_image_with_an_external_data_file_is_refused(tmp_path):
    hypervisor, vm, image = one_disk(tmp_path, "qcow2")
    image.unlink()
    options = f"data_file={tmp_path / 'db1' / 'data'},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, "16M"], check=True)

    with pytest.raises(SourceError, match="external"):
        hypervisor.snapshot("g", {"db1": vm})


def test_a_raw_disk_with_the_header_of_another_format_stays_raw(tmp_path):
    hypervisor, vm, image = one_disk(tmp_path, "raw")
    other = tmp_path / "other.qcow2"
    qemu_img.create(other, "qcow2", 64 * MiB)
    header = other.read_bytes()
    with image.open("r+b") as file:
        file.write(header)

    machine = hypervisor.snapshot("g", {"db1": vm}).machines["db1"]
    with hypervisor.open_disk(machine, "root") as source:
        assert source.size == 16 * MiB
        assert read(source, 0, 4) == b"QFI\xfb"


def test_images_without_a_definition_are_adopted(tmp_path):
    (tmp_path / "db1").mkdir()
    images.create(tmp_path / "db1" / "root.vmdk", "vmdk", 16 * MiB)
    hypervisor = ImagesHypervisor("shelf", tmp_path)
    vm = declare(disks=[{"name": "root", "size": "16MiB"}])

    assert [change.what for change in hypervisor.configure("db1", vm, apply=True)] == ["definition"]
    assert json.loads((tmp_path / "db1" / "vm.json").read_text())["disks"][0]["format"] == "vmdk"


def test_an_iso_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    hypervisor = ImagesHypervisor("shelf", tmp_path)

    with pytest.raises(InputError, match=r"debian\.iso"):
        hypervisor.configure("db1", declare(iso="debian.iso"), apply=True)
    assert not list(tmp_path.iterdir())


def test_what_a_powered_off_vm_cannot_do_is_said_one_sentence_each(tmp_path):
    vm = declare(
        guest={"agent": True},
        health=[{"tcp": 5432}, {"image": True}],
        components={"applications": {"erp": {"paths": ["/opt/erp"], "pre": ["erpctl pause"]}}},
    )

    found = ImagesHypervisor("shelf", tmp_path).unsupported("db1", vm)
    assert [line.split(" is not")[0] for line in found] == [
        "VM db1: guest.agent",
        "VM db1: health tcp",
        "VM db1: applications.erp.pre",
    ]


def test_starting_is_refused_clearly(tmp_path):
    with pytest.raises(UnsupportedError, match="driver images"):
        ImagesHypervisor("shelf", tmp_path).start("db1")


def test_a_relative_path_starts_at_the_fleet_file(tmp_path):
    config = ImagesConfig(driver="images", path="images")

    hypervisor = opening.open_hypervisor("shelf", config, tmp_path)
    hypervisor.configure("db1", declare(), apply=True)
    assert (tmp_path / "images" / "db1" / "root.raw").exists()


@pytest.mark.parametrize(
    "config",
    [
        LibvirtHypervisor(driver="libvirt", uri="qemu:///system"),
        VsphereHypervisor(driver="vsphere", host="vc.example", credentials=KeyReference(env="SECRET")),
    ],
    ids=["libvirt", "vsphere"],
)
def test_a_driver_whose_python_module_is_missing_says_what_to_install(tmp_path, monkeypatch, config):
    monkeypatch.setitem(sys.modules, f"vmkeep.hypervisors.{config.driver}.driver", None)

    with pytest.raises(UnsupportedError, match=rf"pip install 'vmkeep\[{config.driver}\]'"):
        opening.open_hypervisor("rack", config, tmp_path)


def test_an_interrupted_replacement_is_finished_by_the_next_call(tmp_path):
    hypervisor, vm, image = one_disk(tmp_path, "raw")
    (tmp_path / "db1" / ".root.restoring.raw").write_bytes(b"new" + bytes(16 * MiB - 3))
    plan = {"commits": [], "renames": {".root.restoring.raw": "root.raw"}, "removals": []}
    (tmp_path / "db1" / journal.NAME).write_text(json.dumps(plan))

    hypervisor.snapshot("g", {"db1": vm})
    assert image.read_bytes()[:3] == b"new"
    assert sorted(os.listdir(tmp_path / "db1")) == ["root.raw", "vm.json"]


def test_a_restore_after_an_interrupted_one_begins_anew(tmp_path):
    hypervisor, _, image = one_disk(tmp_path, "qcow2")
    shutil.copy(image, tmp_path / "db1" / ".root.restoring.qcow2")

    with hypervisor.create_disk("db1", "root", size=MiB, format="raw") as target:
        target.write(0, b"new")
    hypervisor.commit_disks("db1", ["root"])
    assert sorted(os.listdir(tmp_path / "db1")) == ["root.raw", "vm.json"]
