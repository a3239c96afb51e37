"""Each role does its whole work with the rights it has, and has no others."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.disks.device import Extent
from vmkeep.errors import AccessError, IntegrityError, TemporaryError
from vmkeep.operations.policy import Place, policy
from vmkeep.repository import Repository, SavedComponent, layout
from vmkeep.repository.roles import ROLES, UNLOCKED
from vmkeep.stores import Lock, MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed, on
from vmkeep.testing.repositories import (
    CHUNK,
    KEY,
    BytesDisk,
    backup,
    contents,
    point,
    save,
    small_repository,
)
from vmkeep.testing.roles import RestrictedStore

CONTENT = {"root": b"r" * 90_000, "data": bytes(range(256)) * 300}
PLACE = Place("shop", "prod/")


@pytest.fixture
def store():
    store = MemoryStore()
    small_repository(store)
    return store


def as_role(role, store):
    restricted = RestrictedStore(store, ROLES[role])
    return restricted, Repository.open(restricted, KEY)


def test_a_writer_saves_again_and_again_without_deleting_or_reading_packs(store, tmp_path):
    for number in range(3):
        restricted, writer = as_role("writer", store)
        saved = backup(
            writer, tmp_path / "s", {**CONTENT, "new": bytes([number]) * 9000}, run=f"run-{number}"
        )
        writer.put_run(f"run-{number}", {"points": [saved.session]})

        assert {verb for verb, _ in restricted.denied} <= {"delete"}
    assert contents(Repository.open(store, KEY), saved) == {**CONTENT, "new": b"\2" * 9000}


def test_a_writer_inherits_an_unchanged_disk_without_reading_packs(store, tmp_path):
    first = backup(as_role("writer", store)[1], tmp_path / "s", CONTENT)
    restricted, writer = as_role("writer", store)
    parent = first.components["filesystems.root"].disks["root"]

    with writer.begin(vm="db1", run="run-2", spool=tmp_path / "s") as session:
        ref, stats = session.save_disk(BytesDisk(CONTENT["root"]), parent=parent, changed=())

    assert (ref, stats.read) == (parent, 0)
    assert [one for one in restricted.denied if one[0] == "get"] == []


def test_a_writer_reads_a_disk_whole_where_it_would_need_the_leaves_of_its_parent(store, tmp_path):
    first = backup(as_role("writer", store)[1], tmp_path / "s", CONTENT)
    parent = first.components["filesystems.root"].disks["root"]
    changed = b"c" * CHUNK + CONTENT["root"][CHUNK:]

    with as_role("writer", store)[1].begin(vm="db1", run="run-2", spool=tmp_path / "s") as session:
        ref, stats = session.save_disk(BytesDisk(changed), parent=parent, changed=[Extent(0, CHUNK)])
        session.record(SavedComponent("filesystems.root", {"root": ref}, stats=stats))
        session.upload()
        saved = session.seal(point(session.recorded()))

    assert contents(Repository.open(store, KEY), saved) == {"root": changed}


def test_a_writer_inherits_nothing_blindly_while_a_collection_is_under_way(store, tmp_path):
    first = backup(as_role("writer", store)[1], tmp_path / "s", CONTENT)
    owner = Repository.open(store, KEY)
    (pack, *_) = owner.committed.refresh().packs
    owner.committed.collections.condemn("1", frozenset({pack.name}))
    parent = first.components["filesystems.root"].disks["root"]

    with as_role("writer", store)[1].begin(vm="db1", run="run-2", spool=tmp_path / "s") as session:
        _, stats = session.save_disk(BytesDisk(CONTENT["root"]), parent=parent, changed=())

    assert stats.read == len(CONTENT["root"])


def test_a_collector_deletes_what_is_forgotten(store, tmp_path):
    old = backup(as_role("writer", store)[1], tmp_path / "s", CONTENT, run="run-1")
    new = backup(as_role("writer", store)[1], tmp_path / "s", {"root": b"n" * 9000}, run="run-2")
    restricted, collector = as_role("collector", store)

    collector.forget(old, "retention")
    collected = collector.collect()

    assert (restricted.denied, collected.packs > 0, collected.locked) == ([], True, 0)
    assert contents(Repository.open(store, KEY), new) == {"root": b"n" * 9000}


def test_a_collector_fences_who_is_dead(store, tmp_path):
    writer = as_role("writer", store)[1]
    writer.begin(vm="db1", run="run-1", spool=tmp_path / "s").close()
    restricted, collector = as_role("collector", store)

    collector.collect(now=datetime.now(UTC) + timedelta(days=30))

    assert restricted.denied == []
    assert list(store.list("open/")) == []


def test_a_restorer_says_that_it_reads(store, tmp_path):
    saved = backup(Repository.open(store, KEY), tmp_path / "s", CONTENT)
    restricted, restorer = as_role("restorer", store)

    with restorer.reading(saved):
        assert len(list(store.list("open/"))) == 1
        assert contents(restorer, saved) == CONTENT

    assert {verb for verb, _ in restricted.denied} == {"delete"}


def test_a_writer_continues_what_it_began(store, tmp_path):
    _, writer = as_role("writer", store)
    with writer.begin(vm="db1", run="run-1", spool=tmp_path / "s") as session:
        began = session.id

    with as_role("writer", store)[1].begin(vm="db1", run="run-1", spool=tmp_path / "s") as session:
        assert (session.id, session.resumed) == (began, True)


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.KILLED_AFTER])
def test_a_lost_answer_costs_a_writer_nothing(store, tmp_path, fault):
    faulty = FaultyStore(RestrictedStore(store, ROLES["writer"]), on("put", "packs/", fault))
    session = Repository.open(faulty, KEY).begin(vm="db1", run="run-1", spool=tmp_path / "s")
    with suppress(TemporaryError, Killed):
        save(session, CONTENT)
        session.upload()
    session.close()

    with as_role("writer", store)[1].begin(vm="db1", run="run-1", spool=tmp_path / "s") as resumed:
        save(resumed, {name: data for name, data in CONTENT.items() if missing(resumed, name)})
        resumed.upload()
        saved = resumed.seal(point(resumed.recorded()))

    assert saved.session == session.id
    assert contents(Repository.open(store, KEY), saved) == CONTENT


def missing(session, name):
    return f"filesystems.{name}" not in session.recorded()


def test_a_writer_takes_no_pack_of_another_size_for_its_own(store, tmp_path):
    writer = as_role("writer", store)[1]
    session = writer.begin(vm="db1", run="run-1", spool=tmp_path / "s")
    session._uploads.stop()  # so that packs wait in the spool
    save(session, CONTENT)
    (pack, *_) = session._packer.packs
    store.put_if_absent(layout.pack(pack), b"half of it")

    with pytest.raises(IntegrityError, match="other bytes"):
        session.upload()

    session.close()


def test_a_restorer_keeps_what_a_drill_proved_and_a_writer_cannot_claim_it(store):
    _, restorer = as_role("restorer", store)
    restorer.put_drill("run-1", {"verdict": "passed"})

    with pytest.raises(AccessError):
        as_role("writer", store)[1].put_drill("run-2", {"verdict": "passed"})
    assert as_role("writer", store)[1].drills() == {"run-1": {"verdict": "passed"}}
    assert as_role("collector", store)[1].drills() == {"run-1": {"verdict": "passed"}}


def test_a_restorer_reads_everything(store, tmp_path):
    saved = backup(Repository.open(store, KEY), tmp_path / "s", CONTENT)
    _, restorer = as_role("restorer", store)

    assert contents(restorer, restorer.point("db1")) == CONTENT
    assert restorer.verify(saved).sound
    assert restorer.check_objects() == []


@pytest.mark.parametrize("role", ROLES)
def test_no_role_touches_the_format_or_the_key_slots(role):
    changed = [*ROLES[role].put, *ROLES[role].delete]

    assert not {"format", "keys/"} & set(changed)


def test_a_writer_can_neither_read_packs_nor_delete_nor_forget():
    writer = ROLES["writer"]

    assert not writer.delete
    assert not writer.allow("get", "packs/00/00ff")
    assert not writer.allow("put", "forgotten/20260101T000000000Z-000000000000")
    assert not writer.allow("put", "gc/1/condemned")


def test_a_policy_names_only_what_is_below_the_prefix():
    resources = [
        one for statement in policy("writer", PLACE)["Statement"] for one in [statement["Resource"]] if one
    ]

    assert resources[0] == "arn:aws:s3:::shop"
    assert all(one.startswith("arn:aws:s3:::shop/prod/") for group in resources[1:] for one in group)
    assert "arn:aws:s3:::shop/prod/format" in resources[1]


def test_a_policy_allows_listing_below_the_prefix_only():
    (listing,) = [one for one in policy("writer", PLACE)["Statement"] if one["Action"] == "s3:ListBucket"]

    assert listing["Condition"] == {"StringLike": {"s3:prefix": "prod/*"}}


def test_a_policy_forbids_overwriting_unless_the_service_cannot_say_it():
    def put(**how):
        (one,) = [
            one for one in policy("writer", PLACE, **how)["Statement"] if one["Action"] == "s3:PutObject"
        ]
        return one

    assert put()["Condition"] == {"Null": {"s3:if-none-match": "false"}}
    assert "Condition" not in put(conditional=False)


def test_a_bucket_policy_names_who_gets_the_role():
    arn = "arn:aws:iam::123456789012:user/backup"

    assert {str(one["Principal"]) for one in policy("writer", PLACE, principals=[arn])["Statement"]} == {
        str({"AWS": [arn]})
    }
    assert not any("Principal" in one for one in policy("writer", PLACE)["Statement"])


@pytest.mark.parametrize(("region", "partition"), [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")])
def test_other_parts_of_aws_have_other_names(region, partition):
    (first, *_) = policy("restorer", Place("shop", "", region))["Statement"]

    assert first["Resource"] == f"arn:{partition}:s3:::shop"
    assert "Condition" not in first


def test_what_a_role_may_not_read_is_denied_only_if_it_is_there(store, tmp_path):
    backup(Repository.open(store, KEY), tmp_path / "s", CONTENT)
    restricted, _ = as_role("writer", store)
    (pack, *_) = [info.key for info in store.list("packs/")]

    with pytest.raises(AccessError):
        restricted.get(pack)


@pytest.mark.parametrize("role", ROLES)
def test_a_policy_of_a_user_may_decrypt_with_the_key_of_the_repository_and_no_more(role):
    arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    found = [one for one in policy(role, PLACE, kms_key=arn)["Statement"] if "kms" in one["Action"]]

    assert [(one["Action"], one["Resource"]) for one in found] == [("kms:Decrypt", arn)]
    assert "kms" not in str(policy(role, PLACE, kms_key=arn, principals=["arn:aws:iam::1:user/a"]))


LOCK = Lock("GOVERNANCE", 14, UNLOCKED)


def actions(role, lock):
    return {one["Action"] for one in policy(role, PLACE, lock=lock)["Statement"]}


@pytest.mark.parametrize("role", ROLES)
def test_no_policy_lets_anybody_lift_a_lock(role):
    assert not {action for action in actions(role, LOCK) if "Bypass" in action or "LegalHold" in action}


def test_a_policy_for_locks_adds_only_what_the_role_does():
    assert actions("writer", LOCK) - actions("writer", None) == {"s3:PutObjectRetention"}
    assert actions("restorer", LOCK) == actions("restorer", None)
    assert actions("collector", LOCK) - actions("collector", None) == {
        "s3:PutObjectRetention", "s3:GetObjectRetention", "s3:ListBucketVersions", "s3:DeleteObjectVersion",
    }  # fmt: skip


def test_a_policy_keeps_locks_from_lasting_for_ever():
    (locking,) = [
        one for one in policy("writer", PLACE, lock=LOCK)["Statement"] if one["Action"].endswith("Retention")
    ]

    assert locking["Condition"] == {
        "NumericLessThanEquals": {"s3:object-lock-remaining-retention-days": "18"}
    }
    assert not any("/open/" in place or "/probe/" in place for place in locking["Resource"])


def test_what_may_not_be_deleted_yet_is_collected_later(store, tmp_path):
    repository = Repository.open(store, KEY)
    repository.forget(backup(repository, tmp_path / "a", {"root": b"old" * 30_000}), "test")
    locked = FaultyStore(store, lambda one: Fault.DENIED if one.verb == "delete" else None)

    first = Repository.open(locked, KEY).collect()
    kept = backup(Repository.open(store, KEY), tmp_path / "b", {"root": b"old" * 30_000}, run="run-2")
    second = Repository.open(locked, KEY).collect()

    assert (first.packs, second.packs) == (0, 0)
    assert first.locked > 0
    assert contents(Repository.open(store, KEY), kept) == {"root": b"old" * 30_000}
    assert Repository.open(store, KEY).collect().packs > 0
    assert contents(Repository.open(store, KEY), kept) == {"root": b"old" * 30_000}
    assert Repository.open(store, KEY).unneeded().size == 0
