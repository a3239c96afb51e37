"""The flows of a fleet of running VMs, by a real Prefect engine and server, and a real libvirt daemon."""

import os
import signal
import subprocess
import sys

import pytest

from vmkeep.errors import TemporaryError
from vmkeep.hypervisors.libvirt.driver import LibvirtHypervisor
from vmkeep.testing.rack import Rack
from vmkeep.units import KiB, MiB

pytestmark = pytest.mark.integration

FLEET = """\
vms:
  db1: {disks: [{name: root, size: 32MiB}]}
  app1: {disks: [{name: root, size: 32MiB}], depends_on: [db1]}
consistency_groups: {shop: {vms: [db1, app1]}}
"""
KILLED_IN = """
import os, sys
from pathlib import Path
import flows  # sets Prefect's settings
from flows.run import run_flow
from vmkeep.disks import images, nbd_device
from vmkeep.operations.request import Request
from vmkeep.repository import session

def die(*_args, **_more):
    os.kill(os.getpid(), 9)

operation, fleet, where = sys.argv[1:]
setattr(*{"read": (nbd_device.NbdDevice, "read_into"), "upload": (session.Session, "upload"),
          "written": (images.ImageTarget, "write")}[where], die)
run_flow(Request(operation=operation, fleet=Path(fleet), overwrite=True))
"""


@pytest.fixture
def rack(libvirtd, tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    rack = Rack(tmp_path, libvirtd, FLEET)
    for number, vm in enumerate(("db1", "app1")):
        rack.pause(vm)
        rack.poke(vm, "root", at="0", length="4M", pattern=0x11 + number)
    return rack


def run(rack, operation, **how):
    from flows.run import run_flow  # noqa: PLC0415  (Prefect reads its settings when it is imported)

    return run_flow(rack.request(operation, **how))


def test_running_vms_are_saved_in_full_then_what_changed_and_restored_by_flows(rack):
    first = run(rack, "backup")
    rack.poke("db1", "root", at="20M", length="64k", pattern=0x22)
    second = run(rack, "backup")
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert [rack.read(report, "db1") for report in (first, second)] == [4 * MiB, 64 * KiB]

    saved = {vm: rack.digest(vm, "root") for vm in ("db1", "app1")}
    rack.poke("db1", "root", at="0", length="8M", pattern=0x99)
    for vm in saved:
        rack.domain(vm).destroy()
    report = run(rack, "restore", overwrite=True)
    assert report.exit_code == 0, report.errors
    for vm in saved:
        rack.domain(vm).suspend()
    assert {vm: rack.digest(vm, "root") for vm in saved} == saved


def test_a_daemon_that_is_away_for_a_moment_is_asked_again(rack, monkeypatch):
    take, failures = LibvirtHypervisor.take, iter([TemporaryError("libvirt is away")])

    def away_once(self, prepared):
        for failure in failures:
            raise failure
        return take(self, prepared)

    monkeypatch.setattr(LibvirtHypervisor, "take", away_once)
    assert run(rack, "backup").exit_code == 0
    assert not any(rack.has_job(vm) for vm in ("db1", "app1"))


@pytest.mark.parametrize(
    ("operation", "where"), [("backup", "read"), ("backup", "upload"), ("restore", "written")]
)
def test_after_the_process_of_a_flow_was_killed_the_next_flow_is_right(rack, operation, where):
    from prefect.settings import PREFECT_API_URL  # noqa: PLC0415

    assert run(rack, "backup").exit_code == 0
    saved = {vm: rack.digest(vm, "root") for vm in ("db1", "app1")}
    for vm in saved:
        rack.poke(vm, "root", at="20M", length="64k", pattern=0x22)
        if operation == "restore":
            rack.domain(vm).destroy()
        else:
            saved[vm] = rack.digest(vm, "root")
    dead = subprocess.run(
        [sys.executable, "-c", KILLED_IN, operation, str(rack.path), where],
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
        check=False,
        capture_output=True,
        text=True,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr

    assert run(rack, operation, overwrite=True).exit_code == 0
    for vm, digest in saved.items():
        if operation == "restore":
            rack.domain(vm).suspend()
        assert rack.saved_digest(vm, "root") == rack.digest(vm, "root") == digest
        assert not rack.has_job(vm)
    assert sorted(path.name for path in (rack.daemon.pools / "default").glob(".*")) == []
