"""Whatever tests leave behind is told and cleared away; and so is what their servers leave."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vmkeep.disks import scratch
from vmkeep.testing import clean_machine as machine
from vmkeep.testing import reaper
from vmkeep.testing.clean_machine import clean_machine


def test_temporary_files_are_in_a_folder_that_goes():
    before = tempfile.gettempdir()
    with clean_machine() as folder, tempfile.NamedTemporaryFile(prefix="x") as file:
        assert file.name.startswith(f"{folder}/x")

    assert tempfile.gettempdir() == before == os.environ["TMPDIR"]
    assert not folder.exists()


def test_a_file_that_is_left_is_told():
    with pytest.raises(AssertionError, match="forgotten"), clean_machine() as folder:
        (folder / "forgotten").touch()

    assert not folder.exists()


def test_a_daemon_that_is_left_is_told_and_ended(monkeypatch):
    monkeypatch.setattr(machine, "_ENDS_S", 0.1)
    with pytest.raises(AssertionError, match=r"process \d+: sleep.600"), clean_machine():
        daemon = subprocess.Popen(["sleep", "600"], start_new_session=True)

    assert daemon.wait() == -signal.SIGKILL


def test_an_error_of_the_tests_is_not_hidden_by_what_they_left():
    with pytest.raises(FileNotFoundError), clean_machine() as folder:
        Path(tempfile.mkdtemp()).joinpath("missing").unlink()

    assert not folder.exists()


def test_the_end_of_orphans_is_taken_note_of():
    script = "sleep 0.3 </dev/null >/dev/null 2>&1 & echo $!; exit 3"
    done = subprocess.run(
        [sys.executable, reaper.__file__, "sh", "-c", script], stdout=subprocess.PIPE, check=False
    )

    assert done.returncode == 3
    assert not scratch.started(int(done.stdout))  # nor is it a zombie
