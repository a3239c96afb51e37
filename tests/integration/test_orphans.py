"""What was made for the time of a run goes when its process is gone, though nothing else tells of it."""

import json
import subprocess
import sys
from pathlib import Path

import libvirt
import pytest

from vmkeep.cli import main
from vmkeep.disks import maker, qemu_img
from vmkeep.errors import TemporaryError
from vmkeep.hypervisors import drilled
from vmkeep.hypervisors.images import ImagesHypervisor
from vmkeep.operations import orphans, serving
from vmkeep.testing.hypervisors import declare
from vmkeep.testing.rack import Rack
from vmkeep.units import MiB

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))
    yield
    for note in (tmp_path / "state").glob("*/serving/*/[!.]*/serving.json"):
        serving.end(note.parent)


@pytest.fixture
def rack(libvirtd, tmp_path):
    rack = Rack(tmp_path, libvirtd, "vms:\n  db1: {disks: [{name: root, size: 16MiB}]}\n")
    rack.pause("db1")
    rack.poke("db1", "root", at="1M", length="1M", pattern=0x11)
    rack.domain("db1").destroy()
    assert rack.run("backup").exit_code == 0
    return rack


def of_another(code, *arguments):
    """Run Python in a process of its own, which is killed at its end."""
    whole = f"import os, signal, sys\n{code}\nos.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", whole, *map(str, arguments)], check=False, timeout=120)


def files(rack):
    return sorted(path.name for path in (rack.daemon.pools / "default").iterdir())


HALF = """
from vmkeep.hypervisors.libvirt.driver import LibvirtHypervisor
target = LibvirtHypervisor("here", sys.argv[1]).create_disk("db1", "root", size=16 * 1024**2, format="qcow2")
target.write(0, bytes([7]) * 4096)
"""


def test_a_disk_half_restored_by_a_process_that_was_killed_goes_with_the_next_backup(rack):
    before = files(rack)
    of_another(HALF, rack.daemon.uri)
    assert len(files(rack)) == len(before) + 1
    (left,) = orphans.found(rack.file)
    assert (left.vm, left.disks, left.gone) == ("db1", ("root",), True)

    assert rack.run("backup").exit_code == 0
    assert files(rack) == before
    assert "restoring" not in rack.domain("db1").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert rack.saved_digest("db1", "root") == rack.digest("db1", "root")


def test_doctor_names_what_is_left_and_the_next_restore_is_right(rack, capsys):
    before = rack.digest("db1", "root")
    of_another(HALF, rack.daemon.uri)

    main(["doctor", "--json", "-f", str(rack.path)])
    (told,) = (one for one in json.loads(capsys.readouterr().out) if one["what"] == "db1")
    assert not told["good"]
    assert "new disk root, half restored by process" in told["found"]
    assert rack.run("restore", overwrite=True).exit_code == 0
    assert orphans.found(rack.file) == []
    assert rack.digest("db1", "root") == before


def test_a_disk_that_is_being_restored_by_a_process_at_work_stays(rack):
    with rack.hypervisor.create_disk("db1", "root", size=16 * MiB, format="qcow2") as target:
        target.write(0, b"half")
        during = files(rack)

        assert orphans.clear(rack.file) == []
        assert files(rack) == during
    rack.hypervisor.discard_disks("db1", ["root"])


def test_an_instant_restore_that_fails_half_way_leaves_no_overlay_and_no_server(rack, monkeypatch):
    before = files(rack)

    def full(*_arguments):
        raise TemporaryError("no space left on device")

    monkeypatch.setattr(qemu_img, "create_over", full)
    report = rack.run("restore", instant=True, overwrite=True)
    assert report.exit_code != 0
    assert [*serving.all_of(rack.file)] == []
    assert files(rack) == before
    assert "restoring" not in rack.domain("db1").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)


def test_a_folder_of_a_drill_whose_process_is_gone_is_found_and_others_are_not(tmp_path):
    shelf = ImagesHypervisor("shelf", tmp_path / "images")
    shelf.configure("db1", declare(), apply=True)
    code = """
from pathlib import Path
from vmkeep.hypervisors.images import ImagesHypervisor
from vmkeep.testing.hypervisors import declare
shelf = ImagesHypervisor("shelf", Path(sys.argv[1]))
definition = shelf.snapshot("g", {"db1": declare()}).machines["db1"].definition
shelf.create("db1-drill-1", definition, overwrite=False, drill="vmkeep-drill-1")
"""
    of_another(code, tmp_path / "images")
    captured = shelf.snapshot("g", {"db1": declare()}).machines["db1"].definition
    shelf.create("db1-drill-2", captured, overwrite=False, drill="vmkeep-drill-2")

    (left,) = shelf.orphans()
    assert (left.vm, left.drill, left.gone) == ("db1-drill-1", "vmkeep-drill-1", True)
    shelf.remove(left.vm, drill=left.drill)
    assert shelf.orphans() == []
    assert shelf.exists("db1-drill-2")


@pytest.mark.parametrize(
    ("changed", "gone"),
    [
        ({}, None),
        ({0: "4194303"}, True),  # there is no such process
        ({1: "1"}, True),  # its id is another's now
        ({2: "another-boot"}, True),
        ({3: "1"}, False),  # in another container
        ({4: "elsewhere"}, False),
        ({2: "another-boot", 4: "elsewhere"}, False),
    ],
)
def test_only_who_can_see_that_a_process_is_gone_says_so(changed, gone):
    words = maker.me().split(" ")
    for place, word in changed.items():
        words[place] = word

    found = [*drilled.orphan(" ".join(words), vm="db1-drill-1", drill="vmkeep-drill-1")]
    assert [one.gone for one in found] == ([] if gone is None else [gone])


def test_what_does_not_say_who_made_it_is_nobodys_to_take_away():
    assert [*drilled.orphan("", vm="db1-drill-1", drill="vmkeep-drill-1")] == []
    assert not maker.is_gone("what somebody wrote")
    assert Path("/proc/self/ns/pid").exists()  # or all of this proves nothing
