"""The flows of a fleet of running VMs, by a real Prefect engine and server, and a real libvirt daemon."""

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
