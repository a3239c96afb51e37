"""The demo of the README, as a user runs it once everything is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "demo", *arguments],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A folder in which the demo ran, and what it said."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = run("--folder", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


@pytest.mark.e2e
def test_the_demo_proves_bytes_files_and_rows_equal(played):
    _, done = played

    for proved in ("byte for byte", "files and folders are the same", "10,500 rows", "10,000 rows"):
        assert proved in done.stdout


@pytest.mark.e2e
def test_the_demos_report_has_every_step_of_the_restore(played):
    folder, _ = played
    report = (folder / "report.md").read_text()

    steps = [step["step"] for step in json.loads((folder / "restore.json").read_text())["steps"]]
    assert {"health db1", "health app1", "health web1"} <= set(steps)
    assert all(f"| {step} | succeeded |" in report for step in steps)


@pytest.mark.e2e
def test_the_demo_restores_dependencies_first(played):
    folder, _ = played

    steps = [step["step"] for step in json.loads((folder / "restore.json").read_text())["steps"]]
    assert steps.index("health db1") < steps.index("restore app1/os")
    assert steps.index("health app1") < steps.index("restore web1/os")


@pytest.mark.e2e
def test_the_demo_runs_real_guests_and_loses_nothing(played):
    _, done = played

    assert "SKIPPED" not in done.stdout
    assert "its PostgreSQL has 20,500 orders" in done.stdout


@pytest.mark.e2e
def test_the_demo_leaves_no_process_and_no_mount(played):
    folder, _ = played

    running = subprocess.run(["pgrep", "--full", str(folder)], capture_output=True, text=True, check=False)
    assert not running.stdout
    assert str(folder) not in Path("/proc/mounts").read_text()


@pytest.mark.e2e
def test_the_demo_removes_no_folder_that_it_did_not_make(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")

    done = run("--folder", str(tmp_path))

    assert done.returncode == 1
    assert "say another --folder" in done.stderr
    assert (tmp_path / "precious.txt").read_text() == "mine"
