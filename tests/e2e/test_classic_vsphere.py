"""The six classic commands on a vSphere server: what is typed happens."""

import pytest

from vmkeep.cli import classic
from vmkeep.testing.datacenter import Datacenter
from vmkeep.units import KiB, MiB

pytestmark = pytest.mark.e2e


@pytest.fixture
def dc(vsphere, tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("VMKEEP_TEST_VCENTER", "set by the fleet")
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))
    dc = Datacenter(tmp_path, vsphere, "vms:\n  other: {disks: [{name: root, size: 4MiB}]}   # not touched\n")
    monkeypatch.setenv("VMKEEP_FLEET", str(dc.path))
    return dc


def typed(line):
    name, *arguments = line.split()
    assert getattr(classic, name)(arguments) == 0, line


def test_a_vm_is_made_from_an_iso_is_changed_saved_and_restored(dc):
    (dc.server.datastore("vmfs1") / "myiso.iso").write_bytes(b"iso")
    dc.server.set_guest("myvm", tools=True)

    typed("vmcreate -n myvm -i myiso.iso")
    assert dc.server.machine("myvm").running
    typed("vconfig myvm -a -n dmz")
    typed("vdisk myvm -a -s 64M -t vmfs2")
    dc.hypervisor.stop("myvm")
    typed("vcpu myvm -a -c 2")
    found = next(one.definition for one in dc.hypervisor.inventory() if one.definition.name == "myvm")
    assert (found.cpus, found.iso) == (2, "[vmfs1] myiso.iso")
    assert [card.network for card in found.networks] == ["lan", "dmz"]
    assert [disk.file.partition("]")[0] for disk in found.disks] == ["[vmfs2"]
    assert "# not touched" in dc.path.read_text()

    dc.server.write("myvm", 0, MiB, b"content" * 100 * KiB)
    saved = dc.digests("myvm")
    typed("vmbackup myvm -o")
    dc.server.write("myvm", 0, MiB, bytes(MiB))
    typed("vmrestore myvm -o --overwrite")
    assert dc.digests("myvm") == saved
    assert not dc.strangers()
