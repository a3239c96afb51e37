"""Drills on a real libvirt: two guests boot alone in a network of their own, find each other, and go."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import libvirt
import pytest

from vmkeep.hypervisors.libvirt.machine import parse, to_text
from vmkeep.operations import direct, orphans, repositories, serving, steps
from vmkeep.operations.proofs import proven_by_drills
from vmkeep.operations.request import Request
from vmkeep.testing import tiny_guest
from vmkeep.testing.boot_disk import build_boot_disk
from vmkeep.testing.rack import Rack
from vmkeep.units import MiB

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only the system's daemon makes networks"),
]

# app1 asks db1 by the name that the drill's network gives it, and by the address that db1 gives itself.
VMS = """
vms:
  db1:
    memory: 256MiB
    networks: [user]
    disks: [{name: root, size: 96MiB}]
    guest: {agent: true}
    health: [{agent: true, timeout: 180s}, {tcp: 5432, timeout: 90s}, {ping: true}]
  app1:
    depends_on: [db1]
    memory: 256MiB
    networks: [user]
    disks: [{name: root, size: 96MiB}]
    guest: {agent: true}
    health:
      - {exec: "nc -w 3 db1 5432 </dev/null | grep orders", timeout: 180s}
      - {exec: "nc -w 3 10.77.0.1 5432 </dev/null | grep orders", timeout: 60s}
      - {http: "http://app1/hello", timeout: 60s}
objectives: {shop: {vms: [app1], rto: 15m}}
"""
START = """#!/bin/sh
until ip -4 addr show dev eth0 | grep -q "inet 198.1[89]"; do usleep 100000; done
ip addr add 10.77.0.%d/24 dev eth0
while :; do echo orders | nc -l -p 5432; done
"""


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    """The boot disks of both guests."""
    folder = tmp_path_factory.mktemp("boot")
    files = tiny_guest.build(folder)
    made = {}
    for number, vm in enumerate(("db1", "app1"), 1):
        tree = folder / vm
        (tree / "www").mkdir(parents=True)
        (tree / "www" / "hello").write_text("from app1\n")
        (tree / "start").write_text(START % number)
        (tree / "start").chmod(0o755)
        made[vm] = folder / f"{vm}.raw"
        build_boot_disk(made[vm], tree, files, size=96 * MiB)
    made["nothing"] = folder / "nothing.raw"
    with made["nothing"].open("xb") as file:
        file.truncate(96 * MiB)
    return made


@pytest.fixture
def rack(libvirtd, tmp_path, disks):
    """Both VMs, saved; the originals are powered on, and do nothing."""
    rack = Rack(tmp_path, libvirtd, VMS)
    for vm in ("db1", "app1"):
        rack.fill(vm, "root", disks[vm])
    assert rack.run("backup").exit_code == 0
    for vm in ("db1", "app1"):
        rack.pause(vm)
    yield rack
    for one in serving.all_of(rack.file):  # none, unless a test failed
        serving.end(one.folder)


def world(rack):
    """Return all that a drill must leave as it was."""
    host = rack.daemon.connection
    return (
        sorted(
            (one.name(), one.ID(), one.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
            for one in host.listAllDomains()
        ),
        sorted(one.name() for one in host.listAllNetworks()),
        sorted(path.name for path in (rack.daemon.pools / "default").iterdir()),
        [rack.digest(vm, "root") for vm in ("db1", "app1")],
        [*serving.all_of(rack.file)],
        sorted(path.name for path in (rack.daemon.sockets / "served").glob("*drill*")),
    )


@pytest.mark.parametrize("instant", [True, False])
def test_a_service_comes_back_alone_is_proven_and_goes(rack, instant):
    before = world(rack)

    report = rack.run("drill", targets=["shop"], instant=instant)
    assert ("serve db1" in report.steps) is instant
    assert report.exit_code == 0, report.outcomes
    assert world(rack) == before
    db1, app1 = report.drill.vms
    (shop,) = report.drill.services
    assert 0 < db1.seconds < app1.seconds == shop.seconds < report.elapsed
    assert db1.skipped_gates == (
        "not applicable: ping: its network is isolated from this host; its inside answers",
    )
    assert any("http://app1/hello answers at 198.1" in line for line in report.steps["health app1"].details)
    with repositories.open_repository(rack.file) as repository:
        proven = proven_by_drills(repository)
    assert {rack.points(vm)[-1].session: True for vm in ("db1", "app1")} == {
        session: proof.booted for session, proof in proven.items()
    }


def test_a_vm_that_does_not_boot_fails_the_drill_and_all_is_torn_down(rack, disks):
    rack.domain("app1").destroy()
    rack.fill("app1", "root", disks["nothing"])
    assert rack.run("backup").exit_code == 0
    rack.pause("app1")
    rack.declare(VMS.replace('grep orders", timeout: 180s', 'grep orders", timeout: 5s'))
    before = world(rack)

    report = rack.run("drill", instant=True)
    assert report.exit_code == 1
    assert report.drill.verdict == "failed"
    assert {one.vm: one.passed for one in report.drill.vms} == {"db1": True, "app1": False}
    assert world(rack) == before


def kill_a_drill(rack):
    """Let a process begin a drill, and kill itself in it."""
    # Not a fork: libvirt's connection and its thread cannot be taken along.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from tests.integration import test_drill_libvirt as t; t.killed(sys.argv[2])"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code, root, str(rack.path)], check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_drill_left_is_cleared_away_by_the_next_run_of_anything(rack):
    before = world(rack)
    kill_a_drill(rack)
    left = world(rack)
    grown = [len(now) - len(then) for now, then in zip(left, before, strict=True)]
    assert grown[:2] == [2, 1]
    assert all(
        more > 0 for more in (grown[2], *grown[4:])
    )  # disks, servers, and the folders of their sockets

    assert rack.run("verify").exit_code == 0
    assert world(rack) == before


def test_what_a_killed_drill_left_whose_state_is_lost_is_found_by_its_mark(rack):
    before = world(rack)
    kill_a_drill(rack)
    for one in serving.all_of(rack.file):
        serving.end(one.folder)
    assert orphans.found(rack.file) == []  # as long as the run's folder says what is to be done
    shutil.rmtree(rack.folder / "state")
    copy = rack.folder / "copy"  # somebody's copy of a drill's VM has its mark, too
    made_by_hand = marked(rack, "mine", copy)
    assert {one.vm.partition("-drill-")[0] for one in orphans.found(rack.file)} == {"db1", "app1", ""}
    assert all(one.gone for one in orphans.found(rack.file))

    assert rack.run("backup").exit_code == 0
    assert orphans.found(rack.file) == []
    assert copy.exists()
    made_by_hand.undefine()
    assert without_checkpoints(world(rack)) == without_checkpoints(before)


def marked(rack, name, image):
    """Define a VM with the mark of a drill that is left, as a copy of its VM has it."""
    drilled = next(one for one in rack.daemon.connection.listAllDomains() if "-drill-" in one.name())
    root = parse(drilled.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), what=name)
    root.find("name").text = name
    root.remove(root.find("uuid"))
    root.find("devices/disk/source").set("file", str(image))
    image.write_bytes(b"mine")
    return rack.daemon.connection.defineXML(to_text(root))


def without_checkpoints(seen):
    """Leave out the content of the disks: a backup has made checkpoints in them."""
    return [*seen[:3], *seen[4:]]


def killed(path):
    """Drill, and die when db1 runs: called in a process of its own."""
    request = Request(operation="drill", fleet=Path(path), instant=True)
    real = steps.perform

    def perform(run, name, progress):
        if name == "health db1":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(run, name, progress)

    direct.perform = perform
    direct.run_direct(request)
