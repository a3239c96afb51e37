"""A repository that version 1 wrote is read for ever.

`tests/golden/repository` was made once by `write_golden` and must never be made again: a change that
cannot read it breaks every repository that exists.
"""

import hashlib
import shutil
from pathlib import Path

import pytest

from vmkeep.repository import Repository, Secret
from vmkeep.stores import DirectoryStore
from vmkeep.testing.repositories import CHUNK, backup, contents, small_format

GOLDEN = Path(__file__).parents[1] / "golden" / "repository"
EPOCHS = Path(__file__).parents[1] / "golden" / "epochs"
SECRET = Secret.passphrase("a golden passphrase")


def noise(seed, size):
    """Return bytes that no version of Python draws differently."""
    blocks = (hashlib.sha256(f"{seed} {n}".encode()).digest() for n in range(-(-size // 32)))
    return b"".join(blocks)[:size]


FIRST = {"root": noise("root", 5 * CHUNK) + bytes(20 * CHUNK) + b"text " * 3000, "dump": noise("dump", 9000)}
SECOND = {"root": noise("new", CHUNK) + FIRST["root"][CHUNK:], "dump": b"start" + FIRST["dump"]}


def write_golden(store, spool):
    """Write the golden repository with today's code."""
    repository = Repository.init(store, SECRET, parameters=small_format())
    for number, data in enumerate((FIRST, SECOND)):
        backup(repository, spool, {"root": data["root"]}, {"dump": data["dump"]}, run=f"run-{number}")
    repository.put_run("run-1", {"points": 1})


def write_epochs(store, spool):
    """Write the golden repository of two data epochs with today's code."""
    repository = Repository.init(store, SECRET, parameters=small_format())
    backup(repository, spool, {"root": FIRST["root"]}, {"dump": FIRST["dump"]}, run="run-0")
    repository.access.begin_epoch(SECRET)
    backup(repository, spool, {"root": SECOND["root"]}, {"dump": SECOND["dump"]}, run="run-1")


@pytest.fixture
def repository(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "store")
    return Repository.open(DirectoryStore(tmp_path / "store"), SECRET)


def test_every_point_of_the_golden_repository_is_read(repository):
    points = repository.points("db1")

    assert [contents(repository, point) for point in points] == [FIRST, SECOND]
    assert [point.run for point in points] == ["run-0", "run-1"]
    assert all(repository.verify(point).sound for point in points)
    assert repository.check_objects() == []
    assert repository.runs() == {"run-1": {"points": 1}}


def test_the_golden_repository_takes_a_new_backup_and_shares_its_chunks(repository, tmp_path):
    saved = backup(repository, tmp_path / "spool", {"root": SECOND["root"]}, {"dump": SECOND["dump"]})

    assert saved.stats.new == 0
    assert contents(repository, saved) == SECOND


def test_the_golden_repository_is_small():
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 100_000


def test_the_golden_repository_of_two_data_epochs_is_read(tmp_path):
    shutil.copytree(EPOCHS, tmp_path / "store")
    repository = Repository.open(DirectoryStore(tmp_path / "store"), SECRET)
    points = repository.points("db1")

    assert [contents(repository, point) for point in points] == [FIRST, SECOND]
    assert repository.keys.newest.epoch == 2
    assert repository.scrub().sound
    assert sum(path.stat().st_size for path in EPOCHS.rglob("*") if path.is_file()) < 150_000
