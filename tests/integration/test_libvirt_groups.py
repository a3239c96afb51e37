"""Real guests that depend on each other, captured at one moment while they work."""

import contextlib
import itertools
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from vmkeep.disks import tools
from vmkeep.disks.raw import RawTarget
from vmkeep.errors import GuestError, TemporaryError
from vmkeep.guests.agent import AgentGuest
from vmkeep.operations import repositories
from vmkeep.testing import tiny_guest
from vmkeep.testing.guests import Volume, build_filesystem
from vmkeep.testing.rack import Rack
from vmkeep.units import MiB

pytestmark = pytest.mark.integration

VMS = ("db1", "app1", "web1")
SHOP = """\
vms:
  db1: {disks: [{name: root, size: 32MiB}], guest: {agent: true}}
  app1: {disks: [{name: root, size: 32MiB}], guest: {agent: true}, depends_on: [db1]}
  web1: {disks: [{name: root, size: 32MiB}], guest: {agent: true}, depends_on: [app1]}
"""
GROUP = "consistency_groups: {shop: {vms: [db1, app1, web1]}}\n"


@pytest.fixture(scope="module")
def shop(libvirt_daemon, tmp_path_factory):
    """Three running guests; booting them takes most of the time of these tests."""
    folder = tmp_path_factory.mktemp("shop")
    libvirt_daemon.clear()
    libvirt_daemon.define_pool("default")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMKEEP_STATE", str(folder / "state"))
        rack = Rack(folder, libvirt_daemon, SHOP)
    tree = folder / "tree"
    tree.mkdir()
    (tree / "counter").write_text("0")
    build_filesystem(folder / "disk.raw", Volume(tree, size=32 * MiB))
    boot = tiny_guest.build(folder)
    for vm in VMS:
        rack.fill(vm, "root", folder / "disk.raw")
        rack.boot_from(vm, boot)
        rack.domain(vm).create()
    guests = {vm: AgentGuest(rack.hypervisor.agent(vm), name=vm) for vm in VMS}
    for guest in guests.values():
        until_answering(guest)
    yield rack, guests
    libvirt_daemon.clear()


@pytest.fixture
def rack(shop, tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))
    shop[0].declare(SHOP + GROUP)
    yield shop[0]
    assert not any(shop[0].has_job(vm) for vm in VMS)
    for guest in shop[1].values():
        guest.run(["/bin/sh", "-c", "echo > /data/works"], timeout_s=20)  # it would not, frozen


@pytest.fixture
def guests(shop):
    return shop[1]


def until_answering(guest):
    deadline = time.monotonic() + 120
    while True:
        try:
            return guest.ping(timeout_s=1)
        except TemporaryError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@contextlib.contextmanager
def load(guests):
    """Count up in all guests, in the database first; none is ever more than one ahead of another."""
    stop = threading.Event()

    def count():
        for number in itertools.count(1):
            for vm in VMS:
                write = [
                    "/bin/sh",
                    "-c",
                    f"echo {number} > /data/next && mv /data/next /data/counter && sync",
                ]
                while not stop.is_set():
                    try:
                        guests[vm].run(write, timeout_s=10)
                        break
                    except (GuestError, TemporaryError):
                        time.sleep(0.01)  # it stands still
            if stop.is_set():
                return

    writer = threading.Thread(target=count)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join(30)


def counters(rack, number):
    """Return what the counters are in the recovery points of one run."""
    found = []
    with repositories.open_repository(rack.file) as repository, tempfile.TemporaryDirectory() as folder:
        for vm in VMS:
            ref = repository.points(vm)[number].components["os"].disks["root"]
            copy = Path(folder) / f"{vm}.raw"
            with RawTarget(copy, size=ref.size) as target:
                repository.restore_disk(ref, target)
            found.append(int(tools.run("debugfs", "-R", "cat counter", str(copy), timeout_s=60).stdout))
    return found


def are_of_one_moment(found):
    database, application, web = found
    return web <= application <= database <= web + 1


def test_every_point_of_a_group_shows_one_moment_while_the_guests_write(rack, guests):
    with load(guests):
        for _ in range(4):
            time.sleep(0.5)
            assert rack.run("backup").exit_code == 0

    seen = [counters(rack, number) for number in range(4)]
    assert all(map(are_of_one_moment, seen)), seen
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]
    assert {point.consistency for vm in VMS for point in rack.points(vm)} == {"filesystem"}


def test_without_the_group_they_do_not(rack, guests):
    rack.declare(SHOP)
    before = len(rack.points("db1"))
    with load(guests):
        for _ in range(3):
            time.sleep(0.5)
            assert rack.run("backup").exit_code == 0

    seen = [counters(rack, number) for number in range(before, before + 3)]
    assert not all(map(are_of_one_moment, seen)), seen


def test_how_long_a_group_stood_still_is_in_its_points(rack):
    rack.run("backup")

    points = [rack.points(vm)[-1] for vm in VMS]
    assert {point.group for point in points} == {"shop"}
    assert len({point.taken for point in points}) == 1
    assert all(0 < point.frozen < 5 and 0 < point.skew < 5 and not point.remarks for point in points)


def test_a_group_that_is_not_done_in_time_is_thawed_and_called_crash_consistent(rack):
    rack.declare(SHOP + GROUP.replace("web1]", "web1], max_freeze: 1ms"))

    report = rack.run("backup")
    assert report.exit_code == 0
    assert "CRASH" in report.steps["snapshot shop"].text
    assert {rack.points(vm)[-1].consistency for vm in VMS} == {"crash"}
    assert "max_freeze" in rack.points("db1")[-1].remarks[0]


def test_hooks_run_inside_the_guests_before_and_after(rack, guests):
    rack.declare(hooked("cat /proc/uptime > /data/pre", "cat /proc/uptime > /data/post"))
    rack.run("backup")

    for guest in guests.values():
        said = guest.run(["cat", "/data/pre", "/data/post"], timeout_s=10).out.split()
        assert float(said[0]) < float(said[2])
    assert {rack.points(vm)[-1].consistency for vm in VMS} == {"application"}


def test_a_hook_that_fails_is_said_and_the_point_is_only_filesystem_consistent(rack):
    rack.declare(hooked("echo no >&2; exit 3", "true"))

    report = rack.run("backup")
    assert any("ended with 3: no" in line for line in report.steps["snapshot shop"].details)
    assert rack.points("db1")[-1].consistency == "filesystem"


def hooked(pre, post):
    application = f"{{os: {{}}, applications: {{a: {{paths: [/works], pre: ['{pre}'], post: ['{post}']}}}}}}"
    lines = SHOP.replace("guest: {agent: true}", f"guest: {{agent: true}}, components: {application}")
    return lines + GROUP


KILLED = """
import os, signal, sys
from pathlib import Path
from vmkeep.components import whole_disks
from vmkeep.operations import stillness
from vmkeep.operations.direct import run_direct
from vmkeep.operations.request import Request

def die(*_args, **_more):
    os.kill(os.getpid(), signal.SIGKILL)

place = {"frozen": (stillness.Stillness, "moment_is_over"), "read": (whole_disks, "_inherited")}[sys.argv[2]]
setattr(*place, die)
run_direct(Request(operation="backup", fleet=Path(sys.argv[1])))
"""


@pytest.mark.parametrize("where", ["frozen", "read"])
def test_after_sigkill_the_next_run_thaws_all_and_is_right(rack, guests, where):
    dead = subprocess.run([sys.executable, "-c", KILLED, str(rack.path), where], check=False)
    assert dead.returncode == -signal.SIGKILL
    assert all(guests[vm].frozen() for vm in VMS) == (where == "frozen")
    assert all(rack.has_job(vm) for vm in VMS)

    report = rack.run("backup")
    assert report.exit_code == 0
    assert not any(guests[vm].frozen() for vm in VMS)
    assert are_of_one_moment(counters(rack, -1))


def test_a_guest_that_someone_else_froze_stays_frozen_and_is_said(rack, guests):
    guests["app1"].freeze()
    try:
        report = rack.run("backup")
        assert guests["app1"].frozen()
    finally:
        guests["app1"].thaw()

    assert "app1 could not be frozen" in report.steps["snapshot shop"].text
    assert rack.points("app1")[-1].consistency == "crash"
