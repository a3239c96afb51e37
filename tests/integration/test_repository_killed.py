"""A process that is killed by the system in the middle of a backup."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from vmkeep.repository import Repository
from vmkeep.stores import DirectoryStore
from vmkeep.testing.repositories import KEY, backup, contents
from vmkeep.units import MiB

pytestmark = pytest.mark.integration

PROGRAM = """
import sys
from pathlib import Path
from vmkeep.repository import Repository, SavedComponent
from vmkeep.stores import DirectoryStore
from vmkeep.testing.repositories import KEY, BytesDisk, point
folder = Path(sys.argv[1])
repository = Repository.open(DirectoryStore(folder / "store"), KEY)
session = repository.begin(vm="db1", run="run-2", spool=folder / "spool")
for name in ("first", "second"):
    component = f"filesystems.{name}"
    if component not in session.recorded():
        ref, stats = session.save_disk(
            BytesDisk((folder / name).read_bytes()), progress=lambda size: print(size, flush=True)
        )
        session.record(SavedComponent(component, {name: ref}, stats=stats))
    session.upload(component)
    print("uploaded", component, flush=True)
session.seal(point(session.recorded()))
print("sealed", flush=True)
"""


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).write_bytes(random.Random(number).randbytes(24 * MiB))
    return tmp_path


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("lines", [0, 1, 3, 4, 6])
def test_a_backup_that_is_killed_leaves_the_last_point_and_is_continued(folder, lines):
    store = DirectoryStore(folder / "store")
    old = {"root": random.Random(9).randbytes(5 * MiB)}
    good = backup(Repository.init(store, KEY), folder / "spool", old)

    with start(folder) as process:
        for _ in range(lines):
            process.stdout.readline()
        time.sleep(random.Random(lines).random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()

    assert contents(Repository.open(store, KEY), good) == old
    assert Repository.open(store, KEY).check_objects() == []
    with start(folder) as again:
        output, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert output.endswith("sealed\n")
    latest = Repository.open(store, KEY).point("db1")
    expected = {name: (folder / name).read_bytes() for name in ("first", "second")}
    assert contents(Repository.open(store, KEY), latest) == expected
