"""The six classic commands on real VMs: what is typed happens, from the ISO that boots to the restore."""

import time

import libvirt
import pytest

from vmkeep.cli import classic
from vmkeep.hypervisors.libvirt.machine import parse, read
from vmkeep.testing import tiny_guest
from vmkeep.testing.boot_disk import build_boot_iso
from vmkeep.testing.rack import Rack

pytestmark = pytest.mark.e2e


@pytest.fixture
def rack(libvirtd, tmp_path, monkeypatch):
    libvirtd.define_network("VMNetwork")
    libvirtd.define_pool("vmfs")
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))
    libvirtd.connection.networkLookupByName("VMNetwork").create()
    rack = Rack(tmp_path, libvirtd, "vms:\n  other: {disks: [{name: root, size: 1MiB}]}   # not touched\n")
    monkeypatch.setenv("VMKEEP_FLEET", str(rack.path))
    return rack


def typed(line):
    name, *arguments = line.split()
    assert getattr(classic, name)(arguments) == 0, line


def machine(rack, vm="myvm"):
    return read(parse(rack.domain(vm).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), what=vm))


def test_a_vm_is_made_boots_its_iso_is_changed_saved_and_restored(rack, tmp_path):
    build_boot_iso(rack.daemon.pools / "default" / "myiso.iso", tiny_guest.build(tmp_path))

    typed("vmcreate -n myvm -i myiso.iso")
    deadline = time.monotonic() + 120
    while "GUEST-UP" not in rack.console("myvm"):
        assert time.monotonic() < deadline, rack.console("myvm")
        time.sleep(0.2)
    rack.domain("myvm").destroy()

    typed("vconfig myvm -a -n VMNetwork")
    typed("vdisk myvm -a -s 64M -t vmfs")
    typed("vcpu myvm -a -c 2")
    found = machine(rack)
    assert found.cpus == 2
    assert [card.network for card in found.cards] == ["VMNetwork"]
    assert [disk.path.parent.name for disk in found.disks] == ["vmfs"]
    assert "# not touched" in rack.path.read_text()

    rack.domain("myvm").createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    rack.poke("myvm", found.disks[0].name, at="1M", length="8M", pattern=0x11)
    saved = rack.digest("myvm", found.disks[0].name)
    typed("vmbackup myvm -o")
    rack.poke("myvm", found.disks[0].name, at="0", length="4M", pattern=0x99)
    rack.domain("myvm").destroy()
    typed("vmrestore myvm -o --overwrite")
    assert rack.digest("myvm", found.disks[0].name) == saved
