"""Drills of VMs that cannot be started: restored beside the originals, checked as they lie, and removed."""

import json
import multiprocessing
import os
import signal

import pytest

from vmkeep.cli import main
from vmkeep.errors import SourceError, TemporaryError, UnsupportedError
from vmkeep.operations import direct, repositories, steps
from vmkeep.operations.proofs import proven_by_drills
from vmkeep.operations.reap import reap
from vmkeep.operations.state import state_folder
from vmkeep.planning import Verb

pytestmark = pytest.mark.integration


@pytest.fixture
def saved(site):
    site.path.write_text(site.path.read_text() + "objectives: {shop: {vms: [app1], rto: 1h}}\n")
    site.run("backup")
    return site


def world(site):
    return {path: path.read_bytes() for path in sorted((site.folder / "images").rglob("*")) if path.is_file()}


def proofs(site):
    with repositories.open_repository(site.file) as repository:
        return proven_by_drills(repository)


def test_a_drill_proves_points_and_leaves_nothing(saved):
    before = world(saved)

    report = saved.run("drill", targets=["shop"])
    assert report.exit_code == 0, report.outcomes
    assert report.drill.verdict == "passed"
    assert {one.vm for one in report.drill.vms} == {"db1", "app1"}
    assert world(saved) == before
    assert set(proofs(saved)) == {saved.points(vm)[-1].session for vm in ("db1", "app1")}
    assert not any((state_folder("site") / "runs").iterdir())


def failing(monkeypatch, verb, vm, error):
    real = steps._DRILL[verb]

    def body(run, step, progress):
        if step.vms == (vm,):
            raise error
        return real(run, step, progress)

    monkeypatch.setitem(steps._DRILL, verb, body)


@pytest.mark.parametrize("verb", [Verb.PLACE, Verb.CONFIGURE, Verb.RESTORE, Verb.HEALTH])
@pytest.mark.parametrize("vm", ["db1", "app1"])
def test_a_drill_that_fails_anywhere_leaves_nothing_and_proves_what_came_back(saved, monkeypatch, verb, vm):
    before = world(saved)
    failing(monkeypatch, verb, vm, SourceError("no boot device"))

    report = saved.run("drill")
    assert report.exit_code == 1
    assert report.drill.verdict == "failed"
    assert world(saved) == before
    proven = {
        point.vm for name in ("db1", "app1") for point in saved.points(name) if point.session in proofs(saved)
    }
    assert proven == (set() if vm == "db1" else {"db1"})


def test_an_older_state_can_be_drilled(saved):
    first = saved.points("db1")[-1].session
    saved.write("db1", seed="later")
    saved.run("backup")

    report = saved.run("drill", targets=["db1"], points={"db1": first})
    assert report.exit_code == 0, report.outcomes
    assert set(proofs(saved)) == {first}


def test_what_could_not_be_removed_is_told_and_removed_by_the_next_run(saved, monkeypatch, capfd):
    before = world(saved)
    real = steps._DRILL[Verb.REMOVE]
    failing(monkeypatch, Verb.REMOVE, "db1", TemporaryError("the host is away"))

    assert saved.run("drill").exit_code == 5
    assert world(saved) != before
    assert any("remove db1" in line for line in reap(saved.file))
    main(["doctor", "-f", str(saved.path)])
    assert "any run removes it" in " ".join(capfd.readouterr().out.split())

    monkeypatch.setitem(steps._DRILL, Verb.REMOVE, real)
    assert reap(saved.file) == []
    assert world(saved) == before
    assert not any((state_folder("site") / "runs").iterdir())


def die_at(site, step_id):
    real = steps.perform

    def perform(run, name, progress):
        if name == step_id:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(run, name, progress)

    steps.perform = perform
    direct.perform = perform
    site.run("drill")


@pytest.mark.parametrize("step", ["restore app1/os", "health db1", "remove app1"])
def test_what_a_killed_drill_left_is_cleared_away_by_the_next_run_of_anything(saved, step):
    before = world(saved)
    process = multiprocessing.get_context("fork").Process(target=die_at, args=(saved, step))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert world(saved) != before

    assert saved.run("backup").exit_code == 0
    assert world(saved) == before


def test_the_command_shows_times_and_points_tell_what_was_proven(saved, capfd):
    assert main(["drill", "shop", "-f", str(saved.path), "--direct"]) == 0
    shown = capfd.readouterr().out
    assert "shop" in shown
    assert "met" in shown
    assert main(["points", "db1", "-f", str(saved.path), "--json"]) == 0
    (point,) = json.loads(capfd.readouterr().out)
    assert point["proven"]["booted"] is False
    assert point["proven"]["seconds"] > 0
    assert main(["points", "-f", str(saved.path)]) == 0
    assert "proven: restored" in capfd.readouterr().out


def test_a_missed_objective_is_told_and_has_an_exit_code_of_its_own(saved, capfd):
    saved.path.write_text(saved.path.read_text().replace("rto: 1h", "rto: 1ms"))

    assert main(["drill", "-f", str(saved.path), "--direct", "--json"]) == 3
    told = json.loads(capfd.readouterr().out)
    assert told["complete"] is True
    assert told["drill"]["verdict"] == "missed objective"
    assert told["drill"]["services"]["shop"]["verdict"] == "missed"
    assert len(proofs(saved)) == 2


def test_bad_targets_are_told_before_anything_is_touched(saved):
    with pytest.raises(UnsupportedError, match="whole VMs"):
        saved.run("drill", targets=["db1/os"])
    assert main(["drill", "shp", "-f", str(saved.path), "--direct"]) == 2


def test_a_damaged_record_of_a_drill_hides_no_point(saved):
    saved.run("drill")
    for path in (saved.folder / "repository" / "drills").iterdir():
        path.chmod(0o600)
        path.write_bytes(b"?")

    assert main(["points", "-f", str(saved.path)]) == 0
    assert proofs(saved) == {}
