"""What belongs to a VM beside its disks is saved with it, and is there again after a restore."""

import random
from pathlib import Path

import libvirt
import pytest

from vmkeep.hypervisors.libvirt import belongings
from vmkeep.hypervisors.libvirt.machine import parse, read, to_text
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
