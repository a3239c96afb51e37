"""Restores whose VMs are started: real guests, gate after gate."""

import pytest

from vmkeep.errors import UnsupportedError
from vmkeep.operations import prepare, run, support
from vmkeep.planning import State
from vmkeep.testing import tiny_guest
from vmkeep.testing.guests import Volume, build_filesystem
from vmkeep.testing.site import Site
from vmkeep.testing.tiny_hypervisor import TinyHypervisor
from vmkeep.units import MiB

pytestmark = pytest.mark.integration

FLEET = """\
version: 1
fleet: site
repository: {store: ./repository, key: {file: ./key}}
hypervisors: {shelf: {driver: images, path: ./images}}
defaults: {hypervisor: shelf, guest: {agent: true}}
vms:
  db1:
    disks: [{name: root, size: 16MiB, format: raw}]
    health: [{agent: true}, {exec: "grep -q saved /data/state", timeout: 2s}]
  app1: {depends_on: [db1], disks: [{name: root, size: 16MiB, format: raw}]}
"""


@pytest.fixture(scope="module")
def boot(tmp_path_factory):
    return tiny_guest.build(tmp_path_factory.mktemp("boot"))


@pytest.fixture
def site(tmp_path, monkeypatch, boot):
    """A site whose images can be started as tiny guests, and their hypervisor."""
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    site = Site(tmp_path, text=FLEET)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/state").write_text("saved\n")
    for vm in ("db1", "app1"):
        site.image(vm).unlink()
        build_filesystem(site.image(vm), Volume(tmp_path / "tree", size=16 * MiB))
    tiny = TinyHypervisor("shelf", tmp_path / "images", boot)
    for module in (prepare, run, support):
        monkeypatch.setattr(module, "open_hypervisor", lambda *_: tiny)
    assert site.run("backup").summary.complete
    yield site
    tiny.close()


def states(report):
    return {step: outcome.state for step, outcome in report.outcomes.items() if " " in step}


def test_a_vm_is_started_and_its_dependents_wait_until_its_gates_are_open(site):
    report = site.run("restore", overwrite=True)
    assert report.summary.complete, report.summary.sentence
    assert report.steps["health db1"].details[1].startswith("'grep -q saved /data/state' ended with 0")
    ended = list(report.outcomes)
    assert ended.index("health db1") < ended.index("start app1") < ended.index("health app1")


def test_a_gate_that_stays_closed_blocks_only_the_dependents(site):
    text = site.path.read_text().replace("grep -q saved", "grep -q other")
    site.path.write_text(text + "  web1: {disks: [{name: root, size: 16MiB, format: raw}]}\n")
    build_web = site.image("web1")
    build_web.parent.mkdir()
    build_filesystem(build_web, Volume(site.folder / "tree", size=16 * MiB))
    site.run("backup")

    found = states(site.run("restore", overwrite=True))
    assert found["health db1"] is State.FAILED
    assert found["start app1"] is State.SKIPPED
    assert found["health web1"] is State.SUCCEEDED


def test_a_check_of_images_is_refused_before_anything_is_touched(site):
    site.path.write_text(site.path.read_text().replace("{agent: true}, {exec", "{image: true}, {exec"))

    with pytest.raises(UnsupportedError, match="VM db1: health image is for VMs that stay powered off"):
        site.run("restore", overwrite=True)
