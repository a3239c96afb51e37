"""Whatever anybody does to an image behind vmkeep's back, the next recovery point equals the disk."""

import shutil
import subprocess
import time

import libvirt
import pytest

from vmkeep.hypervisors.libvirt.machine import parse, to_text
from vmkeep.testing.rack import Rack
from vmkeep.units import KiB, MiB

pytestmark = pytest.mark.integration

TWO_ALIKE = "vms:\n  db1: {disks: [{name: root, size: 32MiB}, {name: data, size: 32MiB}]}\n"


@pytest.fixture
def rack(libvirtd, tmp_path, monkeypatch):
    """A VM whose disks are of one size, and that was saved twice: there are checkpoints to build on."""
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))
    rack = Rack(tmp_path, libvirtd, TWO_ALIKE)
    rack.pause("db1")
    rack.poke("db1", "root", at="0", length="8M", pattern=0x11)
    rack.poke("db1", "data", at="0", length="8M", pattern=0x12)
    back_up(rack)
    rack.poke("db1", "root", at="20M", length="64k", pattern=0x13)
    back_up(rack)
    return rack


def back_up(rack):
    report = rack.run("backup")
    assert report.exit_code == 0, report.outcomes
    assert not rack.has_job("db1")
    return report


def saved_in_full(rack):
    """Save; check that the point equals the disks, and return why one was read in full, as it was said."""
    report = back_up(rack)
    for disk in ("root", "data"):
        assert rack.saved_digest("db1", disk) == rack.digest("db1", disk), disk
    told = [line for step in report.steps.values() for line in step.details]
    return " ".join(line for line in told if "read in full" in line)


def image(rack, disk="root"):
    return next(one.path for one in rack.hypervisor.images("db1") if one.disk == disk)


def off(rack):
    rack.domain("db1").destroy()


def qemu(program, *arguments):
    subprocess.run([program, *map(str, arguments)], check=True, capture_output=True)


def define(rack, *, lies=None):
    """Define the VM anew, with what its disks' own headers say is below them."""
    root = parse(rack.domain("db1").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), what="db1")
    for disk in root.findall("devices/disk"):
        for below in disk.findall("backingStore"):
            disk.remove(below)
    if lies is not None:
        root.find("devices/disk/source").set("file", str(lies))
    rack.daemon.connection.defineXML(to_text(root))


def cover(rack):
    """Let the root disk lie on an overlay, as an external snapshot does; return its base."""
    base = image(rack)
    over = base.with_name("over.qcow2")
    rack.domain("db1").snapshotCreateXML(
        f"<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='{over}'/></disk>"
        "<disk name='vdb' snapshot='no'/></disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
    )
    assert image(rack) == over
    return base


def finish_job(rack, *, pivot=False):
    """Wait for a block job of the root disk, and let the VM go over to what it made."""
    domain = rack.domain("db1")
    deadline = time.monotonic() + 60
    while info := domain.blockJobInfo("vda"):
        if pivot and info["cur"] == info["end"] > 0:
            try:
                domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            except libvirt.libvirtError as error:
                if "not ready" not in str(error):
                    raise
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_old_image_with_its_bitmaps_in_the_place_of_the_present_one(rack):
    off(rack)
    old = image(rack).with_suffix(".old")
    shutil.copyfile(image(rack), old)
    rack.pause("db1")
    rack.poke("db1", "root", at="1M", length="64k", pattern=0x14)
    back_up(rack)
    rack.poke("db1", "root", at="2M", length="64k", pattern=0x15)
    off(rack)
    old.replace(image(rack))
    rack.pause("db1")
    rack.poke("db1", "root", at="3M", length="64k", pattern=0x16)

    assert "root" in saved_in_full(rack)


def test_an_older_state_of_the_same_image_knows_what_changed_in_it(rack):
    rack.poke("db1", "root", at="1M", length="64k", pattern=0x14)
    off(rack)
    old = image(rack).with_suffix(".old")
    shutil.copyfile(image(rack), old)
    rack.pause("db1")
    rack.poke("db1", "root", at="2M", length="64k", pattern=0x15)
    off(rack)
    shutil.copyfile(old, image(rack))
    rack.pause("db1")

    assert saved_in_full(rack) == ""  # the bitmap came along: it is as right as the image is old


def test_the_images_of_two_disks_that_were_exchanged(rack):
    off(rack)
    root, data, aside = image(rack), image(rack, "data"), image(rack).with_suffix(".aside")
    root.rename(aside)
    data.rename(root)
    aside.rename(data)
    rack.pause("db1")

    assert "it was replaced" in saved_in_full(rack)


def test_the_image_of_one_disk_copied_over_that_of_another(rack):
    off(rack)
    shutil.copyfile(image(rack, "data"), image(rack))  # with bitmaps of the same names
    rack.pause("db1")

    assert "disk root is read in full: at " in saved_in_full(rack)
    assert any("its image is another one" in remark for remark in rack.points("db1")[-1].remarks)


def test_an_image_from_another_host_with_the_same_path_and_uuid(rack):
    back_up(rack)
    off(rack)
    foreign = image(rack).with_name("foreign.qcow2")
    qemu("qemu-img", "create", "-q", "-f", "qcow2", foreign, "32M")
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 0x21 0 8M", foreign)
    for checkpoint in rack.checkpoints("db1"):
        qemu("qemu-img", "bitmap", "--add", foreign, checkpoint)
    shutil.copyfile(foreign, image(rack))
    rack.pause("db1")

    assert "disk root is read in full: at " in saved_in_full(rack)


def test_a_snapshot_in_the_image_that_qemu_does_not_revert_to(rack):
    domain = rack.domain("db1")
    domain.snapshotCreateXML("<domainsnapshot><name>before</name></domainsnapshot>")
    rack.poke("db1", "root", at="1M", length="64k", pattern=0x14)
    back_up(rack)
    with pytest.raises(libvirt.libvirtError, match="dirty bitmaps"):
        domain.revertToSnapshot(domain.snapshotLookupByName("before"))
    if domain.isActive():
        off(rack)
    with pytest.raises(subprocess.CalledProcessError):
        qemu("qemu-img", "snapshot", "-a", "before", image(rack))
    rack.pause("db1")

    saved_in_full(rack)


def test_a_snapshot_in_the_image_that_was_reverted_to_after_its_checkpoints_were_deleted(rack):
    domain = rack.domain("db1")
    domain.snapshotCreateXML("<domainsnapshot><name>before</name></domainsnapshot>")
    rack.poke("db1", "root", at="1M", length="64k", pattern=0x14)
    back_up(rack)
    for checkpoint in domain.listAllCheckpoints():
        checkpoint.delete()
    domain.revertToSnapshot(domain.snapshotLookupByName("before"))

    assert "root" in saved_in_full(rack)


def test_an_overlay_that_is_committed_into_its_base(rack):
    base = cover(rack)
    rack.poke("db1", "root", at="1M", length="64k", pattern=0x14)
    assert "lies elsewhere" in saved_in_full(rack)
    rack.poke("db1", "root", at="2M", length="64k", pattern=0x15)
    assert saved_in_full(rack) == ""
    rack.poke("db1", "root", at="3M", length="64k", pattern=0x16)
    rack.domain("db1").blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    finish_job(rack, pivot=True)
    assert image(rack) == base
    rack.poke("db1", "root", at="4M", length="64k", pattern=0x17)

    saved_in_full(rack)


def test_an_overlay_that_is_thrown_away(rack):
    rack.poke("db1", "root", at="5M", length="64k", pattern=0x14)
    base = cover(rack)
    rack.poke("db1", "root", at="1M", length="64k", pattern=0x15)
    back_up(rack)
    off(rack)
    define(rack, lies=base)
    rack.pause("db1")

    saved_in_full(rack)


def test_a_base_that_is_pulled_into_its_overlay(rack):
    cover(rack)
    rack.poke("db1", "root", at="1M", length="64k", pattern=0x14)
    back_up(rack)
    rack.domain("db1").blockPull("vda")
    finish_job(rack)
    rack.poke("db1", "root", at="2M", length="64k", pattern=0x15)

    saved_in_full(rack)


def test_an_overlay_whose_base_lies_still_is_read_only_where_it_changed(rack):
    base = cover(rack)
    back_up(rack)
    written = base.stat().st_mtime_ns
    off(rack)
    rack.pause("db1")
    rack.poke("db1", "root", at="24M", length="64k", pattern=0x15)

    if base.stat().st_mtime_ns != written:  # QEMU 8.2 writes into it when it ends, 7.2 does not
        assert "what lies below" in saved_in_full(rack)
        return
    assert rack.read(back_up(rack), "db1") == 64 * KiB
    assert saved_in_full(rack) == ""


def test_a_base_that_was_written_below_its_overlay(rack):
    base = cover(rack)
    back_up(rack)
    off(rack)
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 0x55 4M 1M", base)
    rack.pause("db1")

    assert "what lies below" in saved_in_full(rack)


def test_an_overlay_that_was_put_over_another_base(rack):
    base = cover(rack)
    back_up(rack)
    off(rack)
    over, other = image(rack), base.with_name("other.qcow2")
    shutil.copyfile(base, other)
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 0x55 4M 1M", other)
    qemu("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", other, over)
    define(rack)
    rack.pause("db1")

    assert "what lies below" in saved_in_full(rack)


def test_a_disk_that_was_copied_away_and_back_while_the_vm_ran(rack):
    here = image(rack)
    there = here.with_name("there.qcow2")
    for target, more in ((there, 0), (here, libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT)):
        rack.domain("db1").blockCopy(
            "vda",
            f"<disk type='file'><source file='{target}'/><driver type='qcow2'/></disk>",
            flags=libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB | more,
        )
        finish_job(rack, pivot=True)
        assert image(rack) == target
        rack.poke("db1", "root", at="3M" if target == there else "4M", length="64k", pattern=0x66)
        if target == there:
            assert "lies elsewhere" in saved_in_full(rack)

    saved_in_full(rack)


def test_only_samples_that_are_said_to_be_equal_are_compared(rack):
    rack.poke("db1", "root", at="0", length="8M", pattern=0x31)
    rack.poke("db1", "data", at="0", length="8M", pattern=0x32)

    report = back_up(rack)
    assert rack.read(report, "db1") == 16 * MiB
    assert saved_in_full(rack) == ""


def test_an_image_whose_data_lies_in_a_file_that_others_may_write(rack):
    off(rack)
    top, data = image(rack), image(rack).with_name("root.data")
    top.unlink()
    how = f"data_file={data},data_file_raw=on,preallocation=metadata"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", how, top, "32M")
    rack.pause("db1")
    saved_in_full(rack)
    off(rack)
    with data.open("r+b") as file:
        file.seek(4 * MiB)
        file.write(bytes(range(256)) * KiB)
    rack.pause("db1")

    assert "vda cannot be watched" in saved_in_full(rack)
