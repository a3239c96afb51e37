"""A VM that moves to another host and back while it runs: no recovery point is ever wrong."""

import subprocess

import libvirt
import pytest

from vmkeep.testing.rack import Rack
from vmkeep.units import MiB

pytestmark = pytest.mark.integration

VMS = "vms:\n  db1: {disks: [{name: root, size: 32MiB}]}\n"
DISK = 32 * MiB
LIVE = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNSAFE
"""Unsafe is libvirt's word for disks on no cluster's file system; both hosts are this machine."""


@pytest.fixture
def rack(libvirtd, tmp_path, monkeypatch):
    """A VM that was saved twice: there is a checkpoint to build on."""
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    rack = Rack(tmp_path, libvirtd, VMS)
    rack.pause("db1")
    rack.poke("db1", "root", at="0", length="8M", pattern=0x11)
    saved(rack)
    rack.poke("db1", "root", at="20M", length="64k", pattern=0x12)
    saved(rack)
    return rack


def saved(rack):
    """Save; check that the point equals the disk, and return what was said of it, and how much was read."""
    report = rack.run("backup")
    assert report.exit_code == 0, report.outcomes
    assert rack.saved_digest("db1", "root") == rack.digest("db1", "root")
    told = " ".join(line for step in report.steps.values() for line in step.details)
    return told, rack.read(report, "db1")


def move(rack, host, flags=0, **parameters):
    rack.domain("db1").migrate3(host.connection, {"migrate_uri": "tcp:127.0.0.1", **parameters}, LIVE | flags)
    rack.daemon = host
    rack.declare(VMS)
    # Only a VM that goes on takes its images over from the other host's QEMU.
    rack.domain("db1").resume()
    rack.domain("db1").suspend()


def write(rack, at):
    rack.poke("db1", "root", at=at, length="64k", pattern=0x13)


@pytest.mark.parametrize("flags", [0, libvirt.VIR_MIGRATE_UNDEFINE_SOURCE], ids=["kept", "undefined"])
def test_a_vm_that_moved_is_read_in_full_once_and_said_to_be(rack, second_libvirtd, flags):
    write(rack, "20M")
    move(rack, second_libvirtd, flags)
    write(rack, "21M")

    told, read = saved(rack)
    assert "disk root is read in full: checkpoint vmkeep-rack-" in told
    assert "moved" in told
    assert read >= 8 * MiB

    write(rack, "22M")
    told, read = saved(rack)
    assert "in full" not in told
    assert 0 < read <= MiB


@pytest.mark.parametrize("flags", [0, libvirt.VIR_MIGRATE_UNDEFINE_SOURCE], ids=["kept", "undefined"])
def test_a_vm_that_came_back_misses_nothing_that_was_written_elsewhere(rack, second_libvirtd, flags):
    first = rack.daemon
    move(rack, second_libvirtd, flags)
    write(rack, "21M")
    saved(rack)
    write(rack, "22M")
    saved(rack)
    write(rack, "23M")
    move(rack, first, flags)
    write(rack, "24M")

    told, read = saved(rack)

    # Where its definition stayed, so did its checkpoint, and the bitmap travelled with the image.
    assert (read < 8 * MiB) == (flags == 0) == ("in full" not in told)


def test_a_vm_that_moved_with_its_disk_to_another_place_is_read_in_full(rack, second_libvirtd, tmp_path):
    there = tmp_path / "there.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(there), str(DISK)], check=True)
    (image,) = rack.hypervisor.images("db1")
    xml = rack.domain("db1").XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE).replace(str(image.path), str(there))
    move(
        rack, second_libvirtd, libvirt.VIR_MIGRATE_NON_SHARED_DISK, destination_xml=xml, persistent_xml=xml,
        migrate_disks=["vda"],
    )  # fmt: skip
    (image,) = rack.hypervisor.images("db1")
    assert image.path == there
    write(rack, "21M")

    told, _ = saved(rack)

    assert "disk root is read in full: checkpoint vmkeep-rack-" in told
