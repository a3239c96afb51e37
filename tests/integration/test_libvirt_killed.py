"""Whatever is killed, and whenever: no job, no scratch file and no half-made point or disk is left behind."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time

import libvirt
import pytest

from vmkeep.disks.nbd_device import NbdDevice
from vmkeep.operations import direct
from vmkeep.testing.rack import Rack
from vmkeep.units import MiB

pytestmark = pytest.mark.integration

KILLED_AT = """
import os, sys
from pathlib import Path
from vmkeep.operations.direct import run_direct
from vmkeep.operations.engine import Silent
from vmkeep.operations.request import Request

operation, fleet, step = sys.argv[1:]

class Told(Silent):
    def started(self, this):
        if this.id == step:
            os.kill(os.getpid(), 9)

run_direct(Request(operation=operation, fleet=Path(fleet), overwrite=True), observer=Told())
"""
KILLED_IN = """
import os, sys
from pathlib import Path
from vmkeep.hypervisors.libvirt import driver, restore
from vmkeep.disks import images
from vmkeep.operations.direct import run_direct
from vmkeep.operations.request import Request

def die(*_args, **_more):
    os.kill(os.getpid(), 9)

fleet, where = sys.argv[1:]
setattr(*{"written": (images.ImageTarget, "write"), "all but committed": (restore, "_put"),
          "committed": (restore.checkpoints, "forget")}[where], die)
run_direct(Request(operation="restore", fleet=Path(fleet), overwrite=True))
"""


@pytest.fixture
def rack(libvirtd, tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))
    rack = Rack(tmp_path, libvirtd)
    rack.pause("db1")
    rack.poke("db1", "root", at="0", length="24M", pattern=0x11)
    rack.poke("db1", "data", at="1M", length="1M", pattern=0x12)
    assert rack.run("backup").exit_code == 0
    rack.poke("db1", "root", at="30M", length="12M", pattern=0x22)
    return rack


def dies(*arguments):
    dead = subprocess.run(
        [sys.executable, "-c", *map(str, arguments)], check=False, capture_output=True, text=True
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr


def saved_as_it_is(rack):
    return all(rack.saved_digest("db1", disk) == rack.digest("db1", disk) for disk in ("root", "data"))


def assert_nothing_left(rack):
    assert not rack.has_job("db1")
    assert len(rack.checkpoints("db1")) <= 3
    folder = rack.daemon.pools / "default"
    assert [path.name for path in folder.glob(".*")] == []
    assert len([*folder.iterdir()]) == 2


@pytest.mark.parametrize(
    "step", ["snapshot db1", "backup db1/os", "upload db1/os", "release db1", "seal db1", "verify db1"]
)
def test_after_a_backup_was_killed_the_next_one_is_right(rack, step):
    dies(KILLED_AT, "backup", rack.path, step)
    sealed = len(rack.points("db1"))
    assert sealed == (2 if step == "verify db1" else 1)

    rack.poke("db1", "root", at="50M", length="64k", pattern=0x33)
    assert rack.run("backup").exit_code == 0
    assert saved_as_it_is(rack)
    assert_nothing_left(rack)


@pytest.mark.parametrize("where", ["written", "all but committed", "committed"])
def test_after_a_restore_was_killed_the_vm_is_old_or_new_and_the_next_restore_is_right(rack, where):
    saved = [rack.saved_digest("db1", disk) for disk in ("root", "data")]
    before = [rack.digest("db1", disk) for disk in ("root", "data")]
    rack.domain("db1").destroy()
    dies(KILLED_IN, rack.path, where)

    found = [rack.digest("db1", disk) for disk in ("root", "data")]
    assert found == (saved if where == "committed" else before)
    assert rack.run("restore", overwrite=True).exit_code == 0
    rack.domain("db1").suspend()
    assert [rack.digest("db1", disk) for disk in ("root", "data")] == saved
    assert_nothing_left(rack)


def at_first_read(monkeypatch, what):
    """Do something when a backup has begun to read from QEMU."""
    once = threading.Lock()
    read = NbdDevice.read_into

    def read_into(self, offset, buffer):
        if once.acquire(blocking=False):
            what()
        read(self, offset, buffer)

    monkeypatch.setattr(NbdDevice, "read_into", read_into)


def test_a_daemon_that_is_killed_while_a_disk_is_read_and_comes_back_harms_nothing(rack, monkeypatch):
    away, waiting = threading.Event(), threading.Lock()

    def kill():
        rack.daemon.kill()
        away.set()

    def sleep(_seconds):
        """Between two tries of a step: the daemon comes back, and nobody tries again before it is there."""
        with waiting:
            if away.is_set():
                rack.daemon.restart()
                away.clear()

    at_first_read(monkeypatch, kill)
    monkeypatch.setattr(direct, "carry_out", functools.partial(direct.carry_out, sleep=sleep))
    report = rack.run("backup")

    assert not away.is_set()
    assert report.exit_code == 0, report.errors
    assert saved_as_it_is(rack)
    assert_nothing_left(rack)


def test_a_daemon_that_stays_away_fails_the_run_and_the_next_one_is_right(rack, monkeypatch):
    at_first_read(monkeypatch, rack.daemon.kill)
    report = rack.run("backup")
    rack.daemon.restart()
    monkeypatch.undo()
    monkeypatch.setenv("VMKEEP_STATE", str(rack.folder / "state"))

    assert report.exit_code != 0
    assert rack.run("backup").exit_code == 0
    assert saved_as_it_is(rack)
    assert_nothing_left(rack)


def test_a_qemu_that_is_killed_while_its_disk_is_read_makes_no_point(rack, monkeypatch):
    def kill():
        os.kill(rack.daemon.qemu("db1"), signal.SIGKILL)
        deadline = time.monotonic() + 30
        while rack.domain("db1").isActive():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    at_first_read(monkeypatch, kill)
    report = rack.run("backup")
    assert report.exit_code != 0
    assert len(rack.points("db1")) == 1

    rack.domain("db1").createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    rack.poke("db1", "root", at="50M", length="64k", pattern=0x33)
    assert rack.run("backup").exit_code == 0
    assert rack.points("db1")[-1].components["os"].disks["root"].size == 64 * MiB
    assert saved_as_it_is(rack)
    assert_nothing_left(rack)
