"""The check that reads nothing, on a real S3 service and on a directory."""

import contextlib
import json
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from vmkeep.cli import main
from vmkeep.errors import AccessError
from vmkeep.repository import Repository, Secret
from vmkeep.stores import DirectoryStore, open_store
from vmkeep.testing.faults import FaultyStore
from vmkeep.testing.repositories import CHUNK, KEY, backup, small_repository

pytestmark = pytest.mark.integration
DISKS = {"root": random.Random(1).randbytes(40 * CHUNK)}


class Watched(FaultyStore):
    """Passes checksums on, and remembers what was read."""

    def crc32(self, key):
        return self._store.crc32(key)


@pytest.fixture
def store(seaweed):
    with contextlib.closing(open_store(f"s3://{seaweed.new_bucket()}/prod", s3=seaweed.options)) as store:
        yield store


def replace(store, key, body):
    """Do what vmkeep never does."""
    name = f"{urlsplit(store.url).path.lstrip('/')}/{key}"
    store._client.put_object(Bucket=store._bucket, Key=name, Body=body)


def test_all_checksums_are_compared_and_no_pack_is_read(store, tmp_path):
    backup(small_repository(store), tmp_path / "s", DISKS)
    watched = Watched(store)

    report = Repository.open(watched, KEY).check_packs()

    assert (report.checksums, report.faults) == (report.packs, ())
    assert report.packs > 1
    assert not [one for one in watched.requests if one.verb == "get" and one.key.startswith("packs/")]


def test_a_pack_that_was_replaced_is_found_without_reading(store, tmp_path):
    backup(small_repository(store), tmp_path / "s", DISKS)
    key, other, *_ = [info.key for info in store.list("packs/")]
    body = bytearray(store.get(key))
    body[100] ^= 1
    replace(store, key, bytes(body))
    store.delete(other)

    faults = {fault.pack: fault for fault in Repository.open(store, KEY).check_packs().faults}

    assert faults.keys() == {key, other}
    assert (faults[key].found, faults[other].found) == (len(body), None)


def test_a_continued_session_and_a_rewritten_pack_keep_their_checksums(store, tmp_path):
    repository = small_repository(store)
    old = backup(repository, tmp_path / "s", DISKS)
    with repository.begin(vm="db1", run="run-2", spool=tmp_path / "t") as session:
        session.save_stream([b"x" * 5000])
        session._packer.flush()
    backup(Repository.open(store, KEY), tmp_path / "t", {"root": DISKS["root"][: 9 * CHUNK]}, run="run-2")
    repository.forget(old, "test")
    Repository.open(store, KEY).collect(repack_below=0.99)

    report = Repository.open(store, KEY, cache=tmp_path / "cache").check_packs()
    again = Repository.open(store, KEY, cache=tmp_path / "cache").check_packs()

    assert (report.checksums, report.faults) == (report.packs, ())
    assert (again.checksums, again.faults) == (report.checksums, ())


def test_a_store_that_knows_no_checksums_is_compared_by_size_and_that_is_said(site, capfd):
    site.run("backup")
    capfd.readouterr()

    assert main(["verify", "--quick", "-f", str(site.path)]) == 0

    said = capfd.readouterr().out
    assert "the store tells the checksum of 0, of the rest only the size was compared" in " ".join(
        said.split()
    )
    main(["verify", "--quick", "-f", str(site.path), "--json"])
    assert json.loads(capfd.readouterr().out)["checksums"] == 0


def test_packs_of_an_index_that_knows_none_are_compared_by_size(tmp_path):
    shutil.copytree(Path(__file__).parents[1] / "golden" / "repository", tmp_path / "store")
    golden = DirectoryStore(tmp_path / "store")

    report = Repository.open(golden, Secret.passphrase("a golden passphrase")).check_packs()

    assert (report.checksums, report.faults) == (0, ())


def test_a_writer_who_may_not_ask_compares_sizes(store, tmp_path):
    backup(small_repository(store), tmp_path / "s", DISKS)

    class Denied(FaultyStore):
        def crc32(self, key):
            raise AccessError(key)

    report = Repository.open(Denied(store), KEY).check_packs()

    assert (report.checksums, report.faults) == (0, ())


def test_what_was_not_compared_for_longest_comes_first_and_apart_from_what_was_read(store, tmp_path):
    backup(small_repository(store), tmp_path / "s", DISKS)
    repository = Repository.open(store, KEY)
    first = datetime(2026, 1, 1, tzinfo=UTC)
    compared = []

    class Watching(FaultyStore):
        def crc32(self, key):
            compared.append(key)
            return self._store.crc32(key)

    repository.scrub(now=first)
    for day in range(40):
        report = Repository.open(Watching(store), KEY).check_packs(share=0.3, now=first + timedelta(days=day))
        if report.oldest is not None:
            break

    assert sorted(compared[: report.of]) == sorted(info.key for info in store.list("packs/"))
    assert report.oldest == first
    assert 0 < day < 10
    assert Repository.open(store, KEY).scrub(share=0.01, now=first + timedelta(days=9)).oldest == first


@pytest.mark.parametrize("more", [["db1"], ["--packs"], ["--point", "db1=2026"]])
def test_what_a_quick_check_would_not_look_at_is_refused(site, more, capsys):
    assert main(["verify", "--quick", "-f", str(site.path), *more]) == 2

    assert "--quick" in capsys.readouterr().err
