"""Buckets that lock what is put: all work goes on, and nothing that is needed is destroyed too early."""

import contextlib
import dataclasses
import json
import random
import time
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError

from vmkeep.cli import main
from vmkeep.errors import AccessError, InputError
from vmkeep.operations import repositories
from vmkeep.repository import Repository, layout
from vmkeep.repository.roles import UNLOCKED
from vmkeep.stores import Lock, open_store
from vmkeep.testing.repositories import KEY, backup, contents
from vmkeep.testing.seaweed import USERS, principal
from vmkeep.testing.site import FLEET, Site
from vmkeep.units import MiB

pytestmark = pytest.mark.integration
OLD, NEW = ({"root": random.Random(seed).randbytes(3 * MiB)} for seed in (1, 2))
DAYS = 8
MODES = ["GOVERNANCE", "COMPLIANCE"]


@pytest.fixture(params=MODES)
def bucket(request, seaweed):
    """One that locks every object for a day."""
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


# --- locks by parameters of each put


@pytest.fixture
def plain(seaweed):
    """A bucket with object lock and no default."""
    return seaweed.new_locked_bucket(None)


@pytest.fixture(params=MODES)
def locking(request, plain, seaweed):
    with contextlib.closing(opened(plain, seaweed, request.param)) as store:
        yield store


def opened(bucket, seaweed, mode="GOVERNANCE", days=DAYS, user=None):
    options = seaweed.options_of(user) if user else seaweed.options
    options = dataclasses.replace(options, lock=Lock(mode, days, UNLOCKED))
    return open_store(f"s3://{bucket}/prod", s3=options)


def until(store):
    return {info.key: store.locked_until(info.key) for info in store.list()}


def test_what_is_put_is_locked_and_what_comes_and_goes_is_not(locking, tmp_path):
    before = datetime.now(UTC)
    saved(locking, tmp_path)
    locking.put_if_absent("open/someone", b"x")

    found = until(locking)

    assert found.pop("open/someone") is None
    assert {key.partition("/")[0] for key in found} == {"format", "keys", "packs", "index", "points"}
    least, most = before + timedelta(days=DAYS), before + timedelta(days=DAYS + 3)
    assert all(least < each < most for each in found.values())


def test_a_locked_object_is_neither_deleted_nor_hidden(locking):
    locking.put_if_absent("packs/ab/abcd", b"x")

    with pytest.raises(AccessError):
        locking.delete("packs/ab/abcd")

    assert locking.get("packs/ab/abcd") == b"x"
    assert not locking.put_if_absent("packs/ab/abcd", b"y")


def test_a_lock_is_never_shortened(locking):
    locking.put_if_absent("packs/ab/abcd", b"x")
    was = locking.locked_until("packs/ab/abcd")

    with pytest.raises(AccessError):
        locking.extend_lock("packs/ab/abcd", was - timedelta(days=1))

    assert locking.locked_until("packs/ab/abcd") == was


def test_what_is_locked_is_collected_later_and_its_space_is_freed_then(plain, seaweed, tmp_path):
    store = opened(plain, seaweed)
    old, new = saved(store, tmp_path)
    Repository.open(store, KEY).forget(old, "retention")

    done = Repository.open(store, KEY).collect()

    assert (done.packs, done.locked > 0) == (0, True)
    assert contents(Repository.open(store, KEY), new) == NEW
    seaweed.end_locks(plain, after_s=2)
    time.sleep(3)  # until the service's clock says that they are over
    assert Repository.open(store, KEY).collect().packs == 1
    kept = {info.key for info in store.list("packs/")}
    assert {key for key, _ in seaweed.versions(plain) if "/packs/" in key} == {f"prod/{key}" for key in kept}
    assert contents(Repository.open(store, KEY), new) == NEW


def test_locks_are_extended_only_where_they_are_due_and_for_what_is_needed(locking, tmp_path):
    old, new = saved(locking, tmp_path)
    repository = Repository.open(locking, KEY)
    repository.forget(old, "retention")
    before = until(locking)
    repository.committed.refresh()
    stored_by = repository.committed.sessions()
    needed = {layout.pack(name) for name, session in stored_by.items() if session == new.session}

    assert repository.extend_locks().extended == 0
    later = datetime.now(UTC) + timedelta(days=5)
    done = Repository.open(locking, KEY).extend_locks(now=later)
    again = Repository.open(locking, KEY).extend_locks(now=later)

    after = until(locking)
    moved = {key for key in before if after[key] > before[key]}
    assert (done.extended, done.refused, again.extended) == (len(moved), (), 0)
    assert {key for key in moved if key.startswith("packs/")} == needed
    assert {"format", "keys/default", f"points/db1/{new.session}"} <= moved
    assert f"points/db1/{old.session}" not in moved
    assert all(after[key] >= before[key] for key in before)


def test_where_something_is_damaged_everything_is_locked_on(locking, seaweed, plain, tmp_path):
    old, _ = saved(locking, tmp_path)
    repository = Repository.open(locking, KEY)
    index = f"index/{old.session}"
    ((_, version),) = [each for each in seaweed.versions(plain) if each[0] == f"prod/{index}"]
    with contextlib.suppress(ClientError):  # compliance: it stays
        seaweed.delete_version(plain, f"prod/{index}", version, bypass=True)
    before = until(locking)

    repository.extend_locks(now=datetime.now(UTC) + timedelta(days=5))

    after = until(locking)
    assert all(after[key] > before[key] for key in before if key.startswith("packs/"))


def test_other_stores_have_no_locks_to_extend(seaweed, tmp_path):
    with contextlib.closing(open_store(f"s3://{seaweed.new_bucket()}/prod", s3=seaweed.options)) as store:
        saved(store, tmp_path)

        assert Repository.open(store, KEY).extend_locks().looked == 0
        with pytest.raises(InputError, match="without a lock"):
            store.extend_lock("format", datetime.now(UTC))


def test_locks_are_tried(plain, seaweed):
    store = opened(plain, seaweed, "COMPLIANCE")

    problems, skew = store.lock_problems()

    assert problems == ()
    assert abs(skew) < timedelta(seconds=5)
    assert [*store.list()] == []


def test_a_repository_with_locks_is_not_made_in_a_bucket_without(seaweed):
    with pytest.raises(InputError, match="object_lock needs one made with object lock"):
        Repository.init(opened(seaweed.new_bucket(), seaweed), KEY)


def test_a_bucket_without_object_lock_is_said(seaweed):
    problems, _ = opened(seaweed.new_bucket(), seaweed).lock_problems()

    assert [what.partition(":")[0].partition(" ")[2].partition(" ")[2] for what in problems] == [
        "has no object lock",
        "keeps no versions, which object lock needs",
    ]


# --- a fleet, with exactly the rights of its roles


class Locked(Site):
    """A fleet whose objects are locked; its bucket has the policies that `vmkeep policy` prints."""

    def __init__(self, folder, bucket, seaweed):
        self.bucket, self.seaweed = bucket, seaweed
        folder.mkdir()
        self.credentials = folder / "s3"
        self.become(None)
        s3 = f'{{endpoint_url: "{seaweed.endpoint_url}", region: us-east-1, credentials: {{file: ./s3}}}}'
        lock = f"{{mode: governance, days: {DAYS}}}"
        place = f"store: s3://{bucket}/prod, object_lock: {lock}, retention: {{last: 1}}, s3: {s3}"
        super().__init__(folder, text=FLEET.replace("store: ./repository", place))

    def become(self, user):
        options = self.seaweed.options_of(user) if user else self.seaweed.options
        self.credentials.write_text(f"{options.access_key}:{options.secret_key}\n")


@pytest.fixture
def fleet(tmp_path, monkeypatch, plain, seaweed, capfd):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    fleet = Locked(tmp_path / "site", plain, seaweed)
    statements = []
    for user in USERS:
        capfd.readouterr()
        command = ["policy", "--role", user, "-f", str(fleet.path), "--principal", principal(user)]
        # SeaweedFS knows neither condition: see docs/security.md.
        assert main([*command, "--allow-overwriting"]) == 0
        statements += json.loads(capfd.readouterr().out)["Statement"]
    seaweed.set_policy(plain, {"Version": "2012-10-17", "Statement": statements})
    return fleet


def test_a_fleet_is_backed_up_pruned_and_restored_with_locks_and_roles(fleet):
    before = fleet.digest("db1")
    fleet.become("writer")
    assert fleet.run("backup").exit_code == 0
    fleet.write("app1", seed="second")
    assert fleet.run("backup").exit_code == 0
    fleet.become("collector")
    pruned = fleet.run("prune")
    fleet.become("restorer")
    fleet.write("db1", seed="destroyed")

    assert fleet.run("restore", overwrite=True).exit_code == 0
    assert fleet.digest("db1") == before
    assert pruned.exit_code == 0
    assert any("locks extended" in step.text for step in pruned.steps.values())
    assert any("are locked" in line for step in pruned.steps.values() for line in step.details)


@pytest.mark.parametrize("user", USERS)
def test_no_role_destroys_what_is_locked_or_takes_a_lock_away(fleet, plain, seaweed, user):
    fleet.run("backup")
    theirs = opened(plain, seaweed, user=user)
    keys = [info.key for info in repositories.store_of(fleet.file).list()]

    for key in keys:
        if not key.startswith(UNLOCKED):
            with pytest.raises(AccessError):
                theirs.delete(key)
            with pytest.raises(AccessError):
                theirs.extend_lock(key, datetime.now(UTC) + timedelta(days=1))
    for key, version in seaweed.versions(plain):
        if not key.removeprefix("prod/").startswith(UNLOCKED):
            with pytest.raises(ClientError, match="AccessDenied"):
                seaweed.delete_version(plain, key, version, user=user, bypass=True)


def test_the_doctor_says_that_a_writer_may_not_try_the_lock(fleet, capfd):
    fleet.become("writer")
    capfd.readouterr()
    main(["doctor", "-f", str(fleet.path), "--json"])

    checks = {one["what"]: one for one in json.loads(capfd.readouterr().out)}
    assert checks["object lock of repository"]["good"]
    assert "not tried" in checks["object lock of repository"]["found"]


def test_the_doctor_tries_the_lock(fleet, capfd):
    fleet.become(None)
    capfd.readouterr()
    main(["doctor", "-f", str(fleet.path), "--json"])

    checks = {one["what"]: one for one in json.loads(capfd.readouterr().out)}
    assert checks["object lock of repository"] == {
        "what": "object lock of repository", "good": True, "found": "a locked object was not deleted",
    }  # fmt: skip
