"""What a checkpoint says is what changed; and whatever happens to it, no backup is ever wrong."""

import contextlib
import os
import signal
import subprocess
import time

import libvirt
import pytest

from vmkeep.testing.rack import Rack
from vmkeep.units import KiB, MiB

pytestmark = pytest.mark.integration


@pytest.fixture
def rack(libvirtd, tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))
    rack = Rack(tmp_path, libvirtd)
    rack.pause("db1")
    rack.poke("db1", "root", at="0", length="8M", pattern=0x11)
    rack.poke("db1", "data", at="1M", length="1M", pattern=0x12)
    return rack


def back_up(rack):
    report = rack.run("backup")
    assert report.exit_code == 0, report.outcomes
    assert not rack.has_job("db1")
    return report


def equal(rack, point=-1):
    return all(
        rack.saved_digest("db1", disk, point=point) == rack.digest("db1", disk) for disk in ("root", "data")
    )


def test_only_what_changed_since_the_last_point_is_read(rack):
    first = back_up(rack)
    full = rack.digest("db1", "root")
    rack.poke("db1", "root", at="20M", length="64k", pattern=0x22)
    second = back_up(rack)

    assert rack.read(first, "db1") == 9 * MiB
    assert rack.read(second, "db1") == 64 * KiB
    assert equal(rack)
    assert rack.saved_digest("db1", "root", point=0) == full


def test_many_incrementals_each_equal_their_moment(rack):
    moments = []
    for number in range(5):
        rack.poke("db1", "root", at=f"{number * 9}M", length="100k", pattern=0x30 + number)
        if number == 3:
            rack.poke("db1", "root", at="1M", length="3M", pattern=0)
        back_up(rack)
        moments.append(rack.digest("db1", "root"))

    assert [rack.saved_digest("db1", "root", point=number) for number in range(5)] == moments
    assert len(rack.checkpoints("db1")) <= 3


def test_nothing_is_read_when_nothing_was_written(rack):
    back_up(rack)

    assert rack.read(back_up(rack), "db1") == 0
    assert equal(rack)


def test_what_is_written_while_the_snapshot_is_read_is_not_in_it_and_is_in_the_next(rack):
    at_the_moment = rack.digest("db1", "root")
    hypervisor = rack.hypervisor
    vm = rack.file.fleet.vms["db1"]
    snapshot = hypervisor.snapshot("db1", {"db1": vm})
    rack.poke("db1", "root", at="0", length="4M", pattern=0x77)

    with hypervisor.open_disk(snapshot.machines["db1"], "root") as source:
        content = bytearray(8 * MiB)
        source.read_into(0, memoryview(content))
    hypervisor.release(snapshot)
    assert set(content) == {0x11}
    assert rack.digest("db1", "root") != at_the_moment


def test_checkpoints_outlast_a_restart_of_the_vm(rack):
    back_up(rack)
    rack.domain("db1").destroy()
    rack.pause("db1")
    rack.poke("db1", "root", at="30M", length="64k", pattern=0x33)

    assert rack.read(back_up(rack), "db1") == 64 * KiB
    assert equal(rack)


def test_a_checkpoint_that_is_lost_with_its_qemu_means_a_full_read_and_is_said(rack):
    back_up(rack)
    rack.poke("db1", "root", at="40M", length="64k", pattern=0x44)
    os.kill(rack.daemon.qemu("db1"), signal.SIGKILL)
    until_off(rack)
    rack.pause("db1")
    rack.poke("db1", "root", at="41M", length="64k", pattern=0x45)
    report = back_up(rack)

    assert rack.read(report, "db1") > 9 * MiB
    assert any("read in full" in line and "lost" in line for line in report.steps["snapshot db1"].details)
    assert equal(rack)
    rack.poke("db1", "root", at="50M", length="64k", pattern=0x46)
    assert rack.read(back_up(rack), "db1") == 64 * KiB
    assert equal(rack)


def test_a_checkpoint_that_someone_removed_means_a_full_read(rack):
    back_up(rack)
    rack.poke("db1", "root", at="40M", length="64k", pattern=0x44)
    (checkpoint,) = rack.domain("db1").listAllCheckpoints()
    checkpoint.delete()
    report = back_up(rack)

    assert rack.read(report, "db1") > 9 * MiB
    assert equal(rack)


def test_a_vm_that_was_defined_anew_is_read_in_full(rack):
    back_up(rack)
    rack.poke("db1", "root", at="40M", length="64k", pattern=0x44)
    xml = rack.domain("db1").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    rack.domain("db1").destroy()
    rack.domain("db1").undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    rack.daemon.connection.defineXML(xml)
    rack.pause("db1")
    report = back_up(rack)

    assert rack.read(report, "db1") > 9 * MiB
    assert equal(rack)


def test_a_disk_that_was_replaced_is_read_in_full_and_the_other_is_not(rack):
    back_up(rack)
    rack.domain("db1").destroy()
    image = rack.hypervisor.images("db1")[0].path
    moved = image.with_name("elsewhere.qcow2")
    subprocess.run(["cp", image, moved], check=True)
    xml = rack.domain("db1").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).replace(str(image), str(moved))
    rack.daemon.connection.defineXML(xml)
    rack.pause("db1")
    report = back_up(rack)

    assert rack.read(report, "db1") == 8 * MiB
    assert [
        line for line in report.steps["snapshot db1"].details if "root" in line and "lies elsewhere" in line
    ]
    assert equal(rack)


def test_an_older_copy_of_an_image_that_was_put_back_never_inherits_from_what_came_after_it(rack):
    back_up(rack)
    image = rack.hypervisor.images("db1")[0].path
    rack.domain("db1").destroy()
    subprocess.run(["cp", image, image.with_suffix(".old")], check=True)
    rack.pause("db1")
    rack.poke("db1", "root", at="40M", length="64k", pattern=0x44)
    back_up(rack)
    rack.domain("db1").destroy()
    image.with_suffix(".old").replace(image)
    rack.pause("db1")
    rack.poke("db1", "root", at="44M", length="64k", pattern=0x45)

    back_up(rack)
    assert equal(rack)


def test_a_disk_that_grew_is_saved_whole(rack):
    back_up(rack)
    rack.declare("vms:\n  db1: {disks: [{name: root, size: 96MiB}, {name: data, size: 16MiB}]}\n")
    rack.run("configure")
    rack.poke("db1", "root", at="90M", length="64k", pattern=0x55)
    back_up(rack)

    assert rack.points("db1")[-1].components["os"].disks["root"].size == 96 * MiB
    assert equal(rack)


def test_foreign_checkpoints_and_their_chain_stay(rack):
    back_up(rack)
    foreign = "<domaincheckpoint><name>somebody-elses</name></domaincheckpoint>"
    rack.domain("db1").checkpointCreateXML(foreign)
    for number in range(3):
        rack.poke("db1", "root", at=f"{30 + number}M", length="64k", pattern=0x60 + number)
        report = back_up(rack)
        assert rack.read(report, "db1") == 64 * KiB

    assert "somebody-elses" in rack.checkpoints("db1")
    assert equal(rack)


def test_a_vm_that_is_off_and_was_not_touched_is_not_read(rack):
    rack.domain("db1").destroy()
    first, second = back_up(rack), back_up(rack)

    assert rack.read(first, "db1") >= 9 * MiB
    assert rack.read(second, "db1") == 0
    assert rack.points("db1")[-1].consistency == "powered-off"
    assert equal(rack)


def test_off_and_on_again_builds_on_the_last_checkpoint(rack):
    back_up(rack)
    rack.domain("db1").destroy()
    back_up(rack)
    rack.pause("db1")
    rack.poke("db1", "root", at="40M", length="64k", pattern=0x44)

    assert rack.read(back_up(rack), "db1") == 64 * KiB
    assert equal(rack)


def test_a_raw_disk_has_no_checkpoint_and_is_read_in_full(libvirtd, tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    rack = Rack(tmp_path, libvirtd, "vms:\n  db1: {disks: [{name: root, size: 16MiB, format: raw}]}\n")
    rack.pause("db1")
    rack.poke("db1", "root", at="0", length="1M", pattern=0x11)
    back_up(rack)
    rack.poke("db1", "root", at="2M", length="1M", pattern=0x12)
    back_up(rack)

    assert rack.saved_digest("db1", "root") == rack.digest("db1", "root")
    assert rack.checkpoints("db1") == []


def until_off(rack):
    deadline = time.monotonic() + 30
    while rack.domain("db1").isActive():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with contextlib.suppress(libvirt.libvirtError):
        rack.domain("db1").destroy()
