"""A bucket that locks every object by default: all work goes on, and nothing that was saved is destroyed."""

import contextlib
import random

import pytest
from botocore.exceptions import ClientError

from vmkeep.repository import Repository
from vmkeep.stores import open_store
from vmkeep.testing.repositories import KEY, backup, contents
from vmkeep.units import MiB

pytestmark = pytest.mark.integration
OLD, NEW = ({"root": random.Random(seed).randbytes(3 * MiB)} for seed in (1, 2))


@pytest.fixture(params=["GOVERNANCE", "COMPLIANCE"])
def bucket(request, seaweed):
    return seaweed.new_locked_bucket(request.param)


@pytest.fixture
def store(bucket, seaweed):
    with contextlib.closing(open_store(f"s3://{bucket}/prod", s3=seaweed.options)) as store:
        yield store


def saved(store, folder):
    repository = Repository.init(store, KEY)
    return [backup(repository, folder, disks, run=f"run-{number}") for number, disks in enumerate((OLD, NEW))]


def test_saving_holding_forgetting_collecting_and_restoring_need_no_unlocked_object(store, tmp_path):
    old, new = saved(store, tmp_path)
    repository = Repository.open(store, KEY)
    repository.hold(new, name="case 7", reason="the auditors")
    with repository.reading(old):
        assert contents(repository, old) == OLD
    repository.forget(old, "retention")

    done = Repository.open(store, KEY).collect(repack_below=0.5)

    assert (done.packs, done.waits_for) == (1, ())
    assert contents(Repository.open(store, KEY), new) == NEW
    assert Repository.open(store, KEY).check_objects() == []
    assert [one.key for one in store.list("open/")] == []


def test_what_was_saved_cannot_be_destroyed_before_its_time(store, bucket, seaweed, tmp_path):
    saved(store, tmp_path)
    for info in store.list():
        store.delete(info.key)  # hides it: with versions, this is all that a deletion does

    for key, version in seaweed.versions(bucket):
        with pytest.raises(ClientError, match="AccessDenied"):
            seaweed.delete_version(bucket, key, version)

    assert {key for key, _ in seaweed.versions(bucket)} >= {"prod/format", "prod/keys/default"}
