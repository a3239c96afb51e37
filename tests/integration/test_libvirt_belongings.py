"""What belongs to a VM beside its disks is saved with it, and is there again after a restore."""

import os
import random
import shutil
from pathlib import Path

import libvirt
import pytest

from vmkeep.hypervisors.libvirt import belongings, kept_pools
from vmkeep.hypervisors.libvirt.connection import shared
from vmkeep.hypervisors.libvirt.machine import NAMESPACE, parse, read, to_text
from vmkeep.testing.rack import Rack
from vmkeep.units import KiB

pytestmark = pytest.mark.integration

SETTINGS = 24 * KiB
"""Where in the file the test's settings lie: behind the headers of the store."""


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))


def made(libvirtd, tmp_path, **declared):
    more = "".join(f", {key}: {value}" for key, value in declared.items())
    return Rack(tmp_path, libvirtd, f"vms:\n  db1: {{disks: [{{name: root, size: 16MiB}}]{more}}}\n")


def edited(rack, change):
    root = definition(rack, "db1")
    change(root)
    rack.daemon.connection.defineXML(to_text(root))


def definition(rack, vm):
    return parse(rack.domain(vm).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), what=vm)


def lose(rack):
    domain = rack.domain("db1")
    if domain.isActive():
        domain.destroy()
    domain.undefineFlags(
        libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        | libvirt.VIR_DOMAIN_UNDEFINE_TPM
    )
    for path in (rack.daemon.pools / "default").iterdir():
        path.unlink()


@pytest.fixture
def uefi(libvirtd, tmp_path):
    """A VM that boots with UEFI, was started once, and has settings of its own."""
    rack = made(libvirtd, tmp_path, firmware="uefi")
    settings = tmp_path / "db1_VARS.fd"

    def place(root):
        nvram = root.find("os/nvram")
        if nvram is None:
            nvram = root.find("os").makeelement("nvram", {})
            root.find("os").append(nvram)
        nvram.text = str(settings)

    edited(rack, place)
    rack.pause("db1")
    rack.domain("db1").destroy()
    with settings.open("r+b") as file:
        file.seek(SETTINGS)
        file.write(random.Random(1).randbytes(4 * KiB))
    return rack, settings


def test_uefi_settings_of_a_lost_vm_come_back_and_it_starts(uefi):
    rack, settings = uefi
    before = settings.read_bytes()
    assert rack.run("backup").exit_code == 0
    lose(rack)
    assert not settings.exists()

    report = rack.run("restore")
    assert settings.read_bytes() == before
    assert any("nvram" in line for line in report.steps["configure db1"].details)
    assert rack.domain("db1").isActive()
    assert "vmkeep:nvram" not in to_text(definition(rack, "db1"))


def test_uefi_settings_of_a_running_vm_are_saved_and_a_copy_gets_its_own(uefi, tmp_path):
    rack, settings = uefi
    before = settings.read_bytes()
    rack.pause("db1")
    report = rack.run("backup")
    assert not [line for line in report.steps["snapshot db1"].details if "UEFI" in line]

    rack.run("restore", rename={"db1": "db2"})
    copy = read(definition(rack, "db2")).nvram
    assert copy == tmp_path / "db2_VARS.fd"
    assert copy.read_bytes() == settings.read_bytes() == before


def test_settings_that_cannot_be_read_are_told_and_the_disks_are_saved(uefi):
    rack, settings = uefi
    rack.pause("db1")
    settings.unlink()

    report = rack.run("backup")
    assert report.exit_code == 0
    assert [line for line in report.steps["snapshot db1"].details if "UEFI settings" in line]
    assert any("UEFI settings" in remark for remark in rack.points("db1")[-1].remarks)


def test_the_state_of_a_tpm_comes_back_also_in_a_copy(libvirtd, tmp_path, monkeypatch):
    rack = made(libvirtd, tmp_path)
    monkeypatch.setattr(belongings, "SYSTEM", tmp_path / "swtpm")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)

    def add(root):
        tpm = root.find("devices").makeelement("tpm", {"model": "tpm-tis"})
        tpm.append(tpm.makeelement("backend", {"type": "emulator", "version": "2.0"}))
        root.find("devices").append(tpm)

    edited(rack, add)
    folder = belongings._tpm_folder(rack.hypervisor._connection, definition(rack, "db1"))
    sealed = folder / "tpm2" / "tpm2-00.permall"
    sealed.parent.mkdir(parents=True)
    sealed.write_bytes(b"sealed keys")
    rack.run("backup")
    lose(rack)
    sealed.unlink()

    rack.run("restore")
    rack.run("restore", rename={"db1": "db2"})
    assert sealed.read_bytes() == b"sealed keys"
    copy = belongings._tpm_folder(rack.hypervisor._connection, definition(rack, "db2"))
    assert copy != folder
    assert (copy / "tpm2" / "tpm2-00.permall").read_bytes() == b"sealed keys"


def test_a_network_that_is_gone_is_made_as_it_was(libvirtd, tmp_path):
    libvirtd.define_network("vmkeeplan")
    rack = made(libvirtd, tmp_path, networks="[vmkeeplan]")
    host = libvirtd.connection
    before = host.networkLookupByName("vmkeeplan").UUIDString()
    rack.run("backup")
    lose(rack)
    host.networkLookupByName("vmkeeplan").undefine()

    report = rack.run("restore")
    assert report.exit_code == 0, report.errors
    network = host.networkLookupByName("vmkeeplan")
    try:
        assert (network.UUIDString(), network.isActive(), network.autostart()) == (before, 1, 0)
        assert any("network vmkeeplan" in line for line in report.steps["configure db1"].details)
    finally:
        network.destroy()


FAST = "[{name: root, size: 16MiB, storage: fast}]"


@pytest.fixture
def pooled(libvirtd, tmp_path):
    """A VM whose disk lies in a storage pool of its own, saved, and lost with the pool."""
    folder = libvirtd.define_pool("fast")
    rack = Rack(tmp_path, libvirtd, f"vms:\n  db1: {{disks: {FAST}}}\n")
    rack.daemon.connection.storagePoolLookupByName("fast").setAutostart(1)
    rack.pause("db1")
    rack.poke("db1", "root", at="1M", length="1M", pattern=0x31)
    rack.before = rack.digest("db1", "root")
    rack.fast = folder
    return rack


def lose_pool(rack):
    assert rack.run("backup").exit_code == 0
    lose(rack)
    pool = rack.daemon.connection.storagePoolLookupByName("fast")
    uuid = pool.UUIDString()
    pool.destroy()
    pool.undefine()
    shutil.rmtree(rack.fast)
    return uuid


def pools_of(rack):
    return {one.name() for one in rack.daemon.connection.listAllStoragePools()}


def told(report, what):
    return [line for line in report.steps["configure db1"].details if what in line]


def test_a_storage_pool_that_is_gone_is_made_as_it_was_and_knows_the_disk(pooled):
    uuid = lose_pool(pooled)

    report = pooled.run("restore")
    pool = pooled.daemon.connection.storagePoolLookupByName("fast")
    assert (pool.UUIDString(), pool.isActive(), pool.autostart()) == (uuid, 1, 1)
    (image,) = pooled.hypervisor.images("db1")
    assert image.path.parent == pooled.fast
    assert pool.listVolumes() == [image.path.name]
    assert told(report, "storage pool fast: made as it was captured")
    assert pooled.digest("db1", "root") == pooled.before
    assert "vmkeep:pool" not in to_text(definition(pooled, "db1"))


def test_a_volume_of_a_pool_comes_back_into_its_pool(pooled):
    pooled.domain("db1").destroy()

    def by_name(root):
        disk = root.find("devices/disk")
        name = Path(disk.find("source").get("file")).name
        disk.set("type", "volume")
        disk.find("source").attrib.clear()
        disk.find("source").attrib.update({"pool": "fast", "volume": name})

    pooled.daemon.connection.storagePoolLookupByName("fast").refresh()
    edited(pooled, by_name)
    lose_pool(pooled)

    pooled.run("restore")
    (image,) = pooled.hypervisor.images("db1")
    assert image.path.parent == pooled.fast
    assert pooled.digest("db1", "root") == pooled.before


def test_a_pool_that_is_stopped_is_started(pooled):
    pooled.run("backup")
    lose(pooled)
    pooled.daemon.connection.storagePoolLookupByName("fast").destroy()
    for path in pooled.fast.iterdir():
        path.unlink()

    assert told(pooled.run("restore"), "storage pool fast: stopped -> started")
    assert pooled.daemon.connection.storagePoolLookupByName("fast").isActive()


def test_another_pool_of_that_name_stays_and_is_told(pooled, tmp_path):
    lose_pool(pooled)
    other = pooled.daemon.define_pool("fast", tmp_path / "other")

    report = pooled.run("restore")
    assert told(report, "NOT made: another one has its name here")
    assert [*other.iterdir()] == []
    (image,) = pooled.hypervisor.images("db1")
    assert image.path.parent == pooled.daemon.pools / "default"
    assert pooled.digest("db1", "root") == pooled.before


def test_a_pool_that_cannot_be_made_leaves_nothing_and_the_vm_comes_back(pooled):
    lose_pool(pooled)
    pooled.fast.write_bytes(b"in the way")

    report = pooled.run("restore")
    assert told(report, "storage pool fast: NOT made: ")
    assert pools_of(pooled) == {"default"}
    assert pooled.digest("db1", "root") == pooled.before


def test_a_pool_is_not_made_for_a_copy_in_another_storage_nor_for_a_drill(pooled):
    lose_pool(pooled)

    pooled.run("restore", rename={"db1": "db2"}, storage="default")
    assert pools_of(pooled) == {"default"}
    if os.geteuid() == 0:  # only the system's daemon makes networks
        captured = pooled.points("db1")[-1].definition
        pooled.hypervisor.isolate("vmkeep-drill-1")
        pooled.hypervisor.create("db1-drill-1", captured, overwrite=False, drill="vmkeep-drill-1")
        pooled.hypervisor.remove("db1-drill-1", drill="vmkeep-drill-1")
        pooled.hypervisor.end_isolation("vmkeep-drill-1")
    assert pools_of(pooled) == {"default"}
    assert not pooled.fast.exists()


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("fs", "<device path='/dev/sdz1'/><format type='ext4'/>", "may be another one here"),
        ("fs", "<device path='/dev/disk/by-uuid/no-such'/><format type='ext4'/>", "is not here"),
        (
            "netfs",
            "<host name='127.0.0.1'/><dir path='/vms'/><format type='cifs'/>",
            "does not answer at port 445",
        ),
        ("logical", "<name>vg0</name><format type='lvm2'/>", "it is of type logical"),
        ("disk", "<device path='/dev/sdz'/><format type='gpt'/>", "it is of type disk"),
    ],
)
def test_a_pool_that_may_be_something_else_here_is_not_made_and_it_is_said(
    libvirtd, tmp_path, kind, source, reason
):
    folder = tmp_path / "mount"
    kept = parse(
        f"<pool xmlns='{NAMESPACE}' disks='root'><pool xmlns='' type='{kind}'><name>fast</name>"
        f"<source>{source}</source><target><path>{folder}</path></target></pool></pool>",
        what="pool",
    )

    (change,) = kept_pools.make(shared(libvirtd.uri), [kept], ["root"])
    assert not change.applied
    assert reason in change.declared
    assert [one.name() for one in libvirtd.connection.listAllStoragePools()] == ["default"]
    assert not folder.exists()


def test_a_medium_that_is_not_here_is_ejected_and_the_vm_starts(libvirtd, tmp_path):
    medium = tmp_path / "install.iso"
    medium.write_bytes(bytes(64 * KiB))
    rack = made(libvirtd, tmp_path, iso=medium)
    rack.run("backup")
    lose(rack)
    medium.unlink()

    report = rack.run("restore")
    assert any("ejected" in line for line in report.steps["configure db1"].details)
    assert rack.domain("db1").isActive()
