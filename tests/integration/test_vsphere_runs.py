"""Whole runs on vSphere: what is saved is what was there, and whatever is killed leaves nothing."""

import contextlib
import signal
import subprocess
import sys
import threading

import pytest

from vmkeep.testing.datacenter import Datacenter
from vmkeep.units import KiB, MiB

pytestmark = pytest.mark.integration

KILLED_AT = """
import os, sys
from pathlib import Path
from pyVmomi import SoapAdapter
from vmkeep.operations.direct import run_direct
from vmkeep.operations.request import Request

operation, fleet, method, number, when = sys.argv[1:]
left = int(number)
real = SoapAdapter.SoapStubAdapter.InvokeMethod

def invoke(self, mo, info, *args, **more):
    global left
    left -= info.wsdlName == method
    if info.wsdlName == method and left == 0 and when == "before":
        os.kill(os.getpid(), 9)
    answer = real(self, mo, info, *args, **more)
    if info.wsdlName == method and left == 0:
        os.kill(os.getpid(), 9)
    return answer

SoapAdapter.SoapStubAdapter.InvokeMethod = invoke
targets = ["db1"]
run_direct(Request(operation=operation, fleet=Path(fleet), targets=targets, overwrite=operation == "restore"))
"""


@pytest.fixture
def dc(vsphere, tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("VMKEEP_TEST_VCENTER", "set by the fleet")
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))
    return Datacenter(tmp_path, vsphere)


def done(report):
    assert report.exit_code == 0, report.outcomes
    return report


def dies(dc, *arguments):
    command = [sys.executable, "-c", KILLED_AT, arguments[0], str(dc.path), *map(str, arguments[1:])]
    dead = subprocess.run(command, check=False, capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr


def read(report, vm="db1"):
    return report.steps[f"backup {vm}/os"].read


def test_each_of_many_points_is_its_moment_and_only_changes_are_read(dc):
    moments, costs = [], []
    for number in range(4):
        dc.server.write("db1", 0, number * 5 * MiB, bytes([number + 1]) * 100 * KiB)
        costs.append(read(done(dc.run("backup"))))
        moments.append(dc.digests("db1"))

    assert [dc.saved_digests("db1", point=number) for number in range(4)] == moments
    assert costs[0] >= 4 * MiB
    assert all(0 < cost <= 256 * KiB for cost in costs[1:])
    assert not dc.strangers()


def test_a_vm_that_runs_is_saved_as_its_guest_stood_still_and_as_after_a_power_failure_without(dc):
    dc.hypervisor.start("db1")
    dc.server.set_guest("db1", tools=True)
    done(dc.run("backup", targets=["db1"]))
    dc.server.set_guest("db1", tools=False)
    done(dc.run("backup", targets=["db1"]))

    assert [point.consistency for point in dc.points("db1")] == ["filesystem", "crash"]
    assert dc.saved_digests("db1") == dc.digests("db1")


def test_guests_that_are_held_still_one_by_one_are_not_said_to_show_one_moment(dc):
    dc.path.write_text(dc.path.read_text() + "consistency_groups: {all: {vms: [db1, app1]}}\n")
    for vm in ("db1", "app1"):
        dc.hypervisor.start(vm)
        dc.server.set_guest(vm, tools=True)
    done(dc.run("backup"))

    (point,) = dc.points("db1")
    assert point.consistency == "crash"
    assert any("snapshot of its own" in remark for remark in point.remarks)


def test_a_vm_comes_back_in_place_and_as_a_copy(dc):
    done(dc.run("backup"))
    before = dc.digests("db1")
    dc.server.write("db1", 0, 0, b"damage" * 1000)
    done(dc.run("restore", targets=["db1"], rename={"db1": "db1-copy"}))
    assert dc.digests("db1-copy") == before
    assert dc.digests("db1") != before

    done(dc.run("restore", targets=["db1"], overwrite=True))
    assert dc.digests("db1") == before
    assert [one for one in dc.strangers() if one != "VM db1-copy"] == []


def test_the_first_backup_after_a_restore_reads_all_and_is_right(dc):
    done(dc.run("backup", targets=["db1"]))
    done(dc.run("restore", targets=["db1"], overwrite=True))
    report = done(dc.run("backup", targets=["db1"]))

    assert read(report) >= 4 * MiB
    assert dc.saved_digests("db1") == dc.digests("db1")


@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("CreateSnapshot_Task", "before"),
        ("CreateSnapshot_Task", "after"),
        ("QueryChangedDiskAreas", "before"),
        ("RemoveSnapshot_Task", "before"),
        ("RemoveSnapshot_Task", "after"),
    ],
)
def test_after_a_backup_was_killed_the_next_one_is_right(dc, method, when):
    done(dc.run("backup"))
    dc.server.write("db1", 0, 9 * MiB, b"more" * KiB)
    dies(dc, "backup", method, 1, when)
    dc.server.write("db1", 0, 20 * MiB, b"still more" * KiB)

    done(dc.run("backup"))
    assert dc.saved_digests("db1") == dc.digests("db1")
    assert not dc.strangers()


def test_after_a_backup_was_killed_in_an_export_nothing_stays(dc):
    dc.hypervisor.start("db1")
    dc.server.settings(lock_running=True, lease_timeout=1)
    dies(dc, "backup", "HttpNfcLeaseComplete", 1, "before")

    done(dc.run("backup"))
    assert dc.saved_digests("db1") == dc.digests("db1")
    assert not dc.strangers()


@pytest.mark.parametrize(
    ("method", "number", "when"),
    [
        ("ReconfigVM_Task", 1, "after"),  # the VM is as it was captured
        ("ImportVApp", 1, "after"),  # there is a holder
        ("HttpNfcLeaseComplete", 1, "before"),  # its disks are full
        ("HttpNfcLeaseComplete", 1, "after"),
        ("ReconfigVM_Task", 2, "after"),  # the disks are nobody's
        ("ReconfigVM_Task", 3, "after"),  # they are in place
        ("DeleteVirtualDisk_Task", 1, "after"),  # one of the old ones is gone
        ("ReconfigVM_Task", 4, "before"),  # all are, and it is not noted
        ("Destroy_Task", 1, "before"),  # but the holder is there
    ],
)
def test_after_a_restore_was_killed_the_vm_is_old_or_new_and_the_next_restore_is_right(
    dc, method, number, when
):
    done(dc.run("backup", targets=["db1"]))
    saved = dc.digests("db1")
    for disk in (0, 1):
        dc.server.write("db1", disk, 0, b"later" * KiB)
    later = dc.digests("db1")
    dc.server.settings(lease_timeout=1)
    dies(dc, "restore", method, number, when)

    assert dc.digests("db1") in (saved, later)
    done(dc.run("restore", targets=["db1"], overwrite=True))
    assert dc.digests("db1") == saved
    assert not dc.strangers()


@contextlib.contextmanager
def guests_come_up(server):
    """Let VMware tools run in every VM that there is from now on, once it runs."""
    over = threading.Event()

    def watch():
        while not over.wait(0.1):
            for name in server.machines():
                server.set_guest(name, tools=True, address="192.0.2.1")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def with_guests(dc, more=""):
    text = dc.path.read_text().replace("networks: [lan]}", f"networks: [lan], guest: {{agent: true}}{more}}}")
    dc.path.write_text(text)


def test_a_drill_proves_that_a_service_comes_back_and_leaves_nothing(dc):
    with_guests(dc)
    done(dc.run("backup"))
    before = [dc.digests("db1"), dc.digests("app1")]
    with guests_come_up(dc.server):
        report = done(dc.run("drill"))

    assert {"start db1", "health db1", "remove db1", "health app1"} <= {*report.outcomes}
    assert [dc.digests("db1"), dc.digests("app1")] == before
    assert not dc.strangers()
    assert "vmkeep-drill" not in str(dc.hypervisor._places.networks())


def test_a_drill_of_a_guest_that_does_not_come_up_fails_and_leaves_nothing(dc):
    with_guests(dc, ", health: [{agent: true, timeout: 1s}]")
    done(dc.run("backup"))

    assert dc.run("drill").exit_code != 0
    assert not dc.strangers()
    assert "vmkeep-drill" not in str(dc.hypervisor._places.networks())


def test_after_a_drill_was_killed_the_next_run_of_anything_removes_it(dc):
    with_guests(dc)
    done(dc.run("backup"))
    dies(dc, "drill", "PowerOnVM_Task", 1, "after")
    assert any("drill" in one for one in dc.strangers())

    done(dc.run("backup"))
    assert not dc.strangers()
    assert "vmkeep-drill" not in str(dc.hypervisor._places.networks())
