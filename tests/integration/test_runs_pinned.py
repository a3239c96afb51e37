"""What a run reads stays until it ends: retention and collection may come at any moment of it."""

import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.errors import NotFoundError
from vmkeep.operations import direct, lifecycle, repositories
from vmkeep.operations.run import dead_runs

pytestmark = pytest.mark.integration


def forget_and_collect(site):
    """Forget all there is, as no retention would, and delete what nobody needs."""
    with repositories.open_repository(site.file) as repository:
        for point in repository.points():
            repository.forget(point, "test")
        return repository.collect()


def packs(site):
    with repositories.open_repository(site.file) as repository:
        return [info.key for info in repository.store.list("packs/")]


def before_step(monkeypatch, step, act):
    real = direct.perform

    def perform(run, step_id, progress):
        if step_id == step:
            act()
        return real(run, step_id, progress)

    monkeypatch.setattr(direct, "perform", perform)


@pytest.fixture
def saved(site):
    """The fleet, saved and then destroyed; its digests as they were."""
    site.run("backup")
    digests = site.digest("db1"), site.digest("db1", "data"), site.digest("app1")
    for vm, disk in (("db1", "root"), ("db1", "data"), ("app1", "root")):
        site.write(vm, disk, seed="destroyed")
    return site, digests


@pytest.mark.parametrize("step", ["place db1", "restore db1/os", "restore app1/os"])
def test_a_restore_completes_although_its_points_are_forgotten_and_collected(saved, monkeypatch, step):
    site, digests = saved
    collected = []
    before_step(monkeypatch, step, lambda: collected.append(forget_and_collect(site)))

    assert site.run("restore", overwrite=True).exit_code == 0

    assert (site.digest("db1"), site.digest("db1", "data"), site.digest("app1")) == digests
    assert [len(each.waits_for) for each in collected] == [1]
    forget_and_collect(site)
    assert packs(site) == []


def test_a_restore_that_failed_goes_on_in_another_process_although_its_points_are_forgotten(
    saved, monkeypatch
):
    site, digests = saved
    with monkeypatch.context() as broken:
        broken.setattr("vmkeep.operations.restore.start", _breaks)
        broken.setattr("vmkeep.operations.restore.open_component", _breaks)
        failed = site.run("restore", overwrite=True)
    assert failed.exit_code != 0
    assert forget_and_collect(site).waits_for

    assert site.run("restore", resume=failed.run, overwrite=True).exit_code == 0

    assert (site.digest("db1"), site.digest("db1", "data"), site.digest("app1")) == digests
    assert forget_and_collect(site).waits_for == ()
    assert packs(site) == []


def _breaks(*_):
    raise NotFoundError("the test lets this fail")


KILLED = """
import os, sys
from vmkeep.operations import lifecycle
from vmkeep.operations.request import Request

lifecycle.begin(Request(operation="restore", fleet=sys.argv[1], overwrite=True))
os.kill(os.getpid(), 9)
"""


def test_a_restore_that_was_killed_is_taken_for_dead_and_says_so_when_it_is_continued(saved):
    site, _ = saved
    killed = subprocess.run([sys.executable, "-c", KILLED, str(site.path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (folder,) = dead_runs("site")
    forget_and_collect(site)
    assert packs(site)

    with repositories.open_repository(site.file) as repository:
        repository.collect(now=datetime.now(UTC) + timedelta(days=8))

    assert packs(site) == []
    with pytest.raises(NotFoundError, match="was forgotten"):
        lifecycle.resume(site.request("restore"), folder.name)


def test_a_verification_completes_although_its_points_are_forgotten(saved, monkeypatch):
    site, _ = saved
    before_step(monkeypatch, "verify app1", lambda: forget_and_collect(site))

    assert site.run("verify").exit_code == 0

    assert forget_and_collect(site).waits_for == ()


def test_a_verification_that_found_damage_holds_nothing_any_more(saved):
    site, _ = saved
    with repositories.open_repository(site.file) as repository:
        for pack in packs(site):
            path = site.folder / "repository" / pack
            path.chmod(0o600)
            path.write_bytes(bytes(path.stat().st_size))

    assert site.run("verify").exit_code == 4

    assert list(repository.store.list("open/")) == []


def test_a_point_that_was_forgotten_in_between_refuses_the_run_and_leaves_nothing(saved, monkeypatch):
    site, _ = saved
    real = lifecycle.prepare

    def prepare(file, request):
        prepared = real(file, request)
        forget_and_collect(site)
        return prepared

    monkeypatch.setattr(lifecycle, "prepare", prepare)

    with pytest.raises(NotFoundError, match="was forgotten; choose another one"):
        site.run("restore", overwrite=True)

    assert list(dead_runs("site")) == []
    assert packs(site) == []


def test_old_failed_runs_hold_nothing_any_more(saved, monkeypatch):
    site, _ = saved
    monkeypatch.setattr(lifecycle, "_KEPT", 0)
    monkeypatch.setattr("vmkeep.operations.restore.open_component", _breaks)

    site.run("restore", overwrite=True)

    with repositories.open_repository(site.file) as repository:
        assert list(repository.store.list("open/")) == []
    assert list(dead_runs("site")) == []
