"""Backups begin in the fleet's windows, and at no other time."""

import json
import re
from datetime import UTC, datetime

import pytest

from vmkeep.cli import main
from vmkeep.errors import InputError
from vmkeep.operations import repositories, windows
from vmkeep.operations.state import state_folder

pytestmark = pytest.mark.integration
OPEN = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)
CLOSED = datetime(2026, 11, 24, 5, 0, tzinfo=UTC)
WINDOWS = """\
windows: {night: {start: "01:00", end: "05:00", timezone: Europe/Berlin}}
limits: {shelf: 1}
"""


@pytest.fixture
def nightly(site):
    site.path.write_text(site.path.read_text() + WINDOWS)
    return site


def moments(monkeypatch, *times):
    """Let the clock show these times, one after another, and then the last."""
    left = [*times]
    monkeypatch.setattr(windows, "now", lambda: left.pop(0) if len(left) > 1 else left[0])


def test_outside_of_all_windows_a_backup_is_refused_and_nothing_was_touched(nightly, monkeypatch):
    moments(monkeypatch, CLOSED)

    with pytest.raises(InputError, match=r"the next is night, 2026-11-25 01:00 to 05:00 CET: .* --any-time"):
        nightly.run("backup")
    assert not (state_folder("site") / "runs").exists()
    assert nightly.points("db1") == []


def test_it_is_made_all_the_same_if_that_is_said(nightly, monkeypatch, capsys):
    moments(monkeypatch, CLOSED)

    assert main(["backup", "--direct", "--fleet", str(nightly.path)]) == 2
    assert "--any-time" in capsys.readouterr().err
    assert main(["backup", "--direct", "--any-time", "--fleet", str(nightly.path)]) == 0
    assert len(nightly.points("db1")) == len(nightly.points("app1")) == 1


def test_inside_of_one_it_runs_and_so_do_other_operations_at_any_time(nightly, monkeypatch):
    moments(monkeypatch, OPEN)
    assert nightly.run("backup").exit_code == 0
    moments(monkeypatch, CLOSED)

    assert nightly.run("verify").exit_code == 0
    assert nightly.run("restore", rename={"db1": "db2", "app1": "app2"}).exit_code == 0


def test_what_has_not_begun_when_the_window_closes_is_left_out_and_said(nightly, monkeypatch):
    moments(monkeypatch, OPEN, OPEN, CLOSED)  # for the run, and for the first snapshot

    report = nightly.run("backup")

    assert report.exit_code == 3
    (done,) = [vm for vm in ("db1", "app1") if nightly.points(vm)]
    other = "app1" if done == "db1" else "db1"
    assert nightly.points(done)[0].complete
    assert "no window for backups is open now" in report.outcomes[f"snapshot {other}"].reason
    with repositories.open_repository(nightly.file) as repository:
        assert [info.key for info in repository.store.list("open/")] == []

    moments(monkeypatch, OPEN)
    assert nightly.run("backup", resume=report.run).exit_code == 0
    assert len(nightly.points(done)) == len(nightly.points(other)) == 1


@pytest.mark.parametrize("moment", [OPEN, CLOSED])
def test_a_plan_that_fits_into_a_window_says_nothing_of_it(nightly, monkeypatch, capsys, moment):
    moments(monkeypatch, moment)

    assert main(["plan", "backup", "--json", "--fleet", str(nightly.path)]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []


def test_a_plan_says_what_would_come_too_late(nightly, monkeypatch, capsys):
    moments(monkeypatch, datetime(2026, 11, 24, 3, 59, 58, tzinfo=UTC))  # in two seconds it closes

    assert main(["plan", "backup", "--json", "--fleet", str(nightly.path)]) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert re.fullmatch(
        r"begun at 04:59 CET, \d of 2 snapshots would come too late for window night.*, and be left out: .*",
        note,
    )
