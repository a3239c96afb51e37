"""`vmkeep import`: VMs that exist, written into the fleet file as a person would."""

import json
from pathlib import Path

import pytest

from vmkeep import fleet as fleets
from vmkeep.cli import main
from vmkeep.hypervisors.libvirt.driver import LibvirtHypervisor
from vmkeep.testing.rack import Rack

pytestmark = pytest.mark.e2e

FLEET = """\
# Our laboratory.
version: 1
fleet: lab        # all of it
repository: {store: ./repository, key: {file: "./key"}}
hypervisors: {shelf: {driver: images, path: ./images}}
defaults: {hypervisor: shelf, memory: 1024MiB}
vms:
  db1: {disks: [{name: root, size: 8MiB, format: raw}]}   # the first
"""


@pytest.fixture
def lab(tmp_path, monkeypatch, capfd):
    """Run vmkeep in a folder with images of two VMs; it returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("VMKEEP_FLEET", raising=False)
    for vm, image in (("db1", "root.raw"), ("web1", "root.raw"), ("web1", "logs.img")):
        path = tmp_path / "images" / vm / image
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(8 * 1024**2)

    def run(line):
        capfd.readouterr()
        code = main(line.split())
        return code, *capfd.readouterr()

    return run


def test_a_fleet_file_is_made_from_what_is_there_and_there_is_nothing_left_to_configure(lab):
    code, _, _ = lab("import -f shop.yaml --images images")

    assert code == 0
    fleet = fleets.load("shop.yaml").fleet
    assert {name: [disk.name for disk in vm.disks] for name, vm in fleet.vms.items()} == {
        "db1": ["root"],
        "web1": ["logs", "root"],
    }
    assert lab("init -f shop.yaml")[0] == lab("backup -f shop.yaml --direct")[0] == 0


def test_what_is_missing_is_added_and_all_else_stays_as_it_was(lab):
    Path("fleet.yaml").write_text(FLEET)

    code, _, errors = lab("import")
    after = Path("fleet.yaml").read_text()
    assert code == 0
    assert after.startswith(FLEET)
    assert "db1 is in the fleet file already" in errors
    assert "hypervisor" not in after[len(FLEET) :]
    assert "memory" not in after[len(FLEET) :]
    assert [disk.name for disk in fleets.load("fleet.yaml").fleet.vms["web1"].disks] == ["logs", "root"]


def test_folders_are_meant_from_where_one_is_and_written_as_seen_from_the_file(lab, tmp_path):
    for name, seen in (("2026", "images"), ("below/büro", str(tmp_path / "images"))):
        assert lab(f"import -f {name}.yaml --images images")[0] == 0

        found = fleets.load(Path(f"{name}.yaml"))
        assert str(found.fleet.hypervisors["here"].path) == seen
        assert lab(f"backup db1 -f {name}.yaml --direct")[0] == 6  # no key yet: the file itself is sound
    assert lab("import -f third.yaml --images image")[0] == 2
    assert not Path("third.yaml").exists()


def test_nothing_is_called_written_that_could_not_be(lab, monkeypatch):
    Path("fleet.yaml").write_text(FLEET)
    monkeypatch.setattr(Path, "replace", refuse)

    code, out, errors = lab("import --json")

    assert (code, out) == (6, "")
    assert "cannot write fleet.yaml" in errors
    assert Path("fleet.yaml").read_text() == FLEET


def refuse(*_):
    raise OSError(28, "No space left on device")


def test_a_dry_run_writes_nothing(lab):
    Path("fleet.yaml").write_text(FLEET)

    code, out, _ = lab("import web1 --dry-run")
    assert code == 0
    assert "web1:" in out
    assert Path("fleet.yaml").read_text() == FLEET
    assert lab("import -f other.yaml --images images --dry-run")[0] == 0
    assert not Path("other.yaml").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import nobody", "there is no VM nobody"),
        ("import db1", "is in the fleet file already"),
        ("import --hypervisor elsewhere", "no hypervisor 'elsewhere'"),
        ("import --uri qemu:///system", "names its hypervisors itself"),
        ("import -f new.yaml", "say where the VMs are"),
    ],
)
def test_what_cannot_be_is_one_clear_error_and_nothing_is_written(lab, line, words):
    Path("fleet.yaml").write_text(FLEET)

    code, _, errors = lab(line)
    assert code != 0
    assert words in errors
    assert Path("fleet.yaml").read_text() == FLEET
    assert not Path("new.yaml").exists()


def test_domains_of_others_are_taken_over_as_they_are(lab, libvirtd, tmp_path):
    libvirtd.define_network("lan")
    pool = libvirtd.define_pool("fast")
    (tmp_path / "rack").mkdir()
    Rack(tmp_path / "rack", libvirtd)
    (pool / "logs.raw").write_bytes(bytes(1024**2))
    libvirtd.connection.defineXML(f"""
      <domain type='qemu'><name>old</name><memory unit='MiB'>96</memory><vcpu>2</vcpu>
        <os><type arch='x86_64' machine='pc'>hvm</type></os>
        <devices>
          <disk type='file' device='disk'><driver name='qemu' type='raw'/>
            <source file='{pool}/logs.raw'/><target dev='sdb' bus='sata'/></disk>
          <interface type='network'><source network='lan'/></interface>
          <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
        </devices></domain>""")

    code, out, _ = lab(f"import -f found.yaml --uri {libvirtd.uri} --json")
    assert code == 0, out
    assert json.loads(out)["vms"]["old"] == {
        "hypervisor": "here",
        "cpus": 2,
        "memory": "96MiB",
        "networks": ["lan"],
        "disks": [{"name": "sdb", "size": "1MiB", "format": "raw", "storage": "fast"}],
        "guest": {"agent": True},
    }
    declared = fleets.load("found.yaml").fleet.vms
    assert set(declared) == {"db1", "old"}
    hypervisor = LibvirtHypervisor("here", libvirtd.uri)
    assert {name: [*hypervisor.configure(name, vm, apply=False)] for name, vm in declared.items()} == {
        "db1": [],
        "old": [],
    }
