"""Collecting deletes what nothing kept needs, nothing else, and whoever works meanwhile never notices."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.errors import (
    AccessError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    TemporaryError,
    UnsupportedError,
)
from vmkeep.repository import Repository, layout
from vmkeep.repository.manifest import SavedComponent
from vmkeep.repository.pins import new_reader
from vmkeep.repository.roles import ROLES
from vmkeep.stores import DirectoryStore, MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, on
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

SHARED = random.Random(1).randbytes(20 * CHUNK)
ONLY_OLD = random.Random(2).randbytes(30 * CHUNK)
ONLY_NEW = random.Random(3).randbytes(30 * CHUNK)
DUMP = random.Random(4).randbytes(60_000)
OLD = {"root": SHARED, "data": ONLY_OLD}
NEW = {"root": SHARED, "data": ONLY_NEW}
LATER = timedelta(days=8)


@pytest.fixture(params=["memory", "directory"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else DirectoryStore(tmp_path / "store")


@pytest.fixture
def repository(store):
    return small_repository(store)


def again(repository):
    """The same repository as another process has it."""
    return Repository.open(repository.store, KEY)


def as_role(role, repository):
    """The same repository with the rights of a role only."""
    return Repository.open(RestrictedStore(repository.store, ROLES[role]), KEY)


def objects(repository, prefix):
    return [info.key for info in repository.store.list(prefix)]


def two_points(repository, tmp_path):
    old = backup(repository, tmp_path / "old", OLD, {"dump": DUMP}, run="run-1")
    new = backup(repository, tmp_path / "new", NEW, run="run-2")
    return old, new


def test_what_only_a_forgotten_point_needs_is_deleted(repository, tmp_path):
    old, new = two_points(repository, tmp_path)
    before = sum(info.size for info in repository.store.list("packs/"))
    repository.forget(old, "retention")

    done = again(repository).collect()

    assert done.size > len(ONLY_OLD)
    assert sum(info.size for info in repository.store.list("packs/")) == before - done.size
    assert [each.session for each in again(repository).points()] == [new.session]
    assert contents(again(repository), new) == NEW
    assert again(repository).check_objects() == []


def test_a_second_collection_finds_nothing_to_do(repository, tmp_path):
    old, _ = two_points(repository, tmp_path)
    repository.forget(old, "retention")
    repository.collect()
    before = objects(repository, "")

    done = again(repository).collect()

    assert (done.packs, done.waits_for, objects(repository, "")) == (0, (), before)


def test_when_all_is_forgotten_nothing_but_tombstones_and_records_is_left(repository, tmp_path):
    for each in two_points(repository, tmp_path):
        repository.forget(each, "retention")

    again(repository).collect()

    assert (
        objects(repository, "packs/") == objects(repository, "index/") == objects(repository, "points/") == []
    )
    assert len(objects(repository, "forgotten/")) == 2
    assert again(repository).committed.collections.under_way() == {}


def test_asking_first_what_is_freed_deletes_nothing(repository, tmp_path):
    old, _ = two_points(repository, tmp_path)
    before = objects(repository, "")

    expected = again(repository).unneeded(without=frozenset({old.session})).size

    assert objects(repository, "") == before
    repository.forget(old, "retention")
    assert repository.collect().size == expected > len(ONLY_OLD)


def test_a_backup_under_way_is_waited_for_and_what_it_counts_on_is_spared(repository, tmp_path):
    old, _ = two_points(repository, tmp_path)
    with again(repository).begin(vm="db1", run="run-3", spool=tmp_path / "third") as session:
        save(session, OLD)
        repository.forget(old, "retention")

        first = again(repository).collect()
        session.upload()
        third = session.seal(point(session.recorded()))

    assert first.packs == 0
    assert [each.session for each in first.waits_for] == [third.session]
    second = again(repository).collect()
    assert second.waits_for == ()
    assert contents(again(repository), third) == OLD
    assert again(repository).verify(third).sound


def test_a_backup_that_begins_behind_the_list_does_not_count_on_it(repository, tmp_path):
    old, _ = two_points(repository, tmp_path)
    waited_for = again(repository).begin(vm="app1", run="run-3", spool=tmp_path / "app1")
    repository.forget(old, "retention")
    assert again(repository).collect().waits_for
    with again(repository).begin(vm="db1", run="run-4", spool=tmp_path / "fourth") as session:
        save(session, OLD)
        waited_for.void("nothing to save")

        assert again(repository).collect().packs

        session.upload()
        fourth = session.seal(point(session.recorded()))
    assert contents(again(repository), fourth) == OLD


def test_a_collector_needs_no_more_rights_than_its_role_has(repository, tmp_path):
    old, new = two_points(repository, tmp_path)
    again(repository).begin(vm="app1", run="run-3", spool=tmp_path / "app1").close()
    collector = as_role("collector", repository)
    collector.forget(old, "retention")

    done = collector.collect(now=datetime.now(UTC) + LATER)

    assert done.packs > 0 == done.locked
    assert contents(again(repository), new) == NEW


def test_a_session_that_died_is_fenced_and_its_packs_are_deleted(repository, tmp_path):
    _, new = two_points(repository, tmp_path)
    size = sum(info.size for info in repository.store.list("packs/"))
    session = again(repository).begin(vm="db1", run="run-3", spool=tmp_path / "third")
    save(session, {"more": random.Random(9).randbytes(40 * CHUNK)})
    session.upload()

    assert again(repository).collect().packs == 0
    assert again(repository).collect(now=datetime.now(UTC) + LATER).packs

    with pytest.raises(ConflictError):
        session.seal(point(session.recorded()))
    session.close()
    assert again(repository).collect().waits_for == ()
    assert sum(info.size for info in repository.store.list("packs/")) == size
    assert contents(again(repository), new) == NEW


def test_a_point_that_is_read_stays_readable_until_the_reader_leaves(repository, tmp_path):
    old, _ = two_points(repository, tmp_path)
    reader = again(repository)

    with reader.reading(old):
        repository.forget(old, "retention")
        assert again(repository).collect().packs == 0
        assert contents(reader, old) == OLD | {"dump": DUMP}

    assert again(repository).collect().packs


def test_a_reader_that_died_is_not_waited_for_for_ever(repository, tmp_path):
    old, _ = two_points(repository, tmp_path)
    died = repository.reading(old)
    died.__enter__()
    repository.forget(old, "retention")

    assert again(repository).collect().waits_for

    assert again(repository).collect(now=datetime.now(UTC) + LATER).packs
    assert objects(repository, "open/") == []


@pytest.mark.parametrize("role", ["restorer", None])
def test_a_reader_that_says_that_it_still_reads_is_waited_for_as_long_as_it_does(role, repository, tmp_path):
    old, _ = two_points(repository, tmp_path)
    begun = datetime.now(UTC)
    reader = as_role(role, repository) if role else again(repository)
    name = new_reader()
    reader.pin({old.vm: old.session}, name)
    repository.forget(old, "retention")
    assert again(repository).collect().waits_for

    assert reader.renew(name, now=begun + LATER - timedelta(days=2))
    assert again(repository).collect(now=begun + LATER).waits_for
    assert contents(reader, old) == OLD | {"dump": DUMP}

    assert again(repository).collect(now=begun + 2 * LATER).packs
    assert not reader.renew(name)
    again(repository).collect(now=begun + 3 * LATER)
    assert objects(repository, "open/") == []


def test_a_reader_that_said_so_leaves_nothing_when_it_leaves(repository, tmp_path):
    old, _ = two_points(repository, tmp_path)
    name = new_reader()
    repository.pin({old.vm: old.session}, name)
    repository.renew(name)
    repository.unpin(name)

    assert objects(repository, "open/") == []


def test_a_reader_that_may_not_delete_says_that_it_left(repository, tmp_path):
    old, _ = two_points(repository, tmp_path)
    with as_role("restorer", repository).reading(old):
        repository.forget(old, "retention")
        assert again(repository).collect().waits_for
    assert len(objects(repository, "open/")) == 2

    assert as_role("collector", repository).collect().packs

    assert objects(repository, "open/") == []


def test_a_forgotten_point_is_not_read_any_more(repository, tmp_path):
    old, _ = two_points(repository, tmp_path)
    repository.forget(old, "retention")

    with pytest.raises(NotFoundError, match="forgotten"), again(repository).reading(old):
        pass

    assert objects(repository, "open/") == []


def test_chunks_that_are_needed_again_are_stored_again(repository, tmp_path):
    """Also for a process that remembers an index in which the deleted packs still are."""
    old, _ = two_points(repository, tmp_path)
    stale = again(repository)
    stale.committed.refresh()
    repository.forget(old, "retention")
    again(repository).collect()

    third = backup(again(repository), tmp_path / "third", OLD, run="run-3")

    assert contents(again(repository), third) == contents(stale, third) == OLD
    assert again(repository).verify(third).sound
    assert again(repository).check_objects() == []


def test_a_tree_whose_point_is_forgotten_is_not_inherited_blindly(repository, tmp_path):
    """Its last leaves share a pack with what is kept; but what is below them is deleted."""
    disk = random.Random(5).randbytes(60 * CHUNK)
    with repository.begin(vm="db1", run="run-1", spool=tmp_path / "first") as session:
        parent, shared = (session.save_disk(BytesDisk(content))[0] for content in (disk, SHARED))
        session.record(SavedComponent("filesystems.data", {"data": parent, "root": shared}))
        session.upload()
        old = session.seal(point(session.recorded()))
    backup(repository, tmp_path / "second", {"root": SHARED}, run="run-2")
    repository.forget(old, "retention")
    assert again(repository).collect().packs

    with again(repository).begin(vm="db1", run="run-3", spool=tmp_path / "third") as session:
        ref, _ = session.save_disk(BytesDisk(disk), parent=parent, changed=[])
        session.record(SavedComponent("filesystems.data", {"data": ref}))
        session.upload()
        third = session.seal(point(session.recorded()))

    assert contents(again(repository), third) == {"data": disk}


def test_a_disk_of_a_kept_point_is_inherited_without_reading_its_leaves(repository, tmp_path):
    _, new = two_points(repository, tmp_path)
    parent = new.components["filesystems.data"].disks["data"]
    session = again(repository).begin(vm="db1", run="run-3", spool=tmp_path / "third")

    ref, stats = session.save_disk(BytesDisk(ONLY_NEW), parent=parent, changed=[])

    assert (ref, stats.read, stats.stored) == (parent, 0, 0)
    session.close()


def test_a_session_whose_point_was_forgotten_cannot_bring_it_back(repository, tmp_path):
    session = again(repository).begin(vm="db1", run="run-1", spool=tmp_path / "spool")
    save(session, OLD)
    session.upload()
    session._put_index()
    session._decide(session._stamped(point(session.recorded())))  # and the process dies
    session.close()
    repository.forget(again(repository).point("db1"), "retention")
    again(repository).collect(now=datetime.now(UTC) + LATER)

    with pytest.raises(ConflictError, match="forgotten"):
        again(repository).begin(vm="db1", run="run-1", spool=tmp_path / "spool")

    assert again(repository).points() == []


def test_a_seal_whose_answer_was_lost_is_not_repeated_for_a_point_that_is_forgotten_now(tmp_path):
    store = MemoryStore()
    repository = small_repository(store)
    faulty = FaultyStore(store, on("put", "points/", Fault.LOST))
    session = Repository.open(faulty, KEY).begin(vm="db1", run="run-1", spool=tmp_path / "spool")
    save(session, OLD)
    session.upload()
    with pytest.raises(TemporaryError):
        session.seal(point(session.recorded()))
    repository.forget(repository.point("db1"), "retention")
    repository.collect()

    with pytest.raises(ConflictError, match="forgotten"):
        session.seal(point(session.recorded()))

    # An index that came back would mention packs that are gone, and no record would tell so.
    assert objects(repository, "index/") == objects(repository, "packs/") == []


class LockedStore(MemoryStore):
    """Deletes no packs, as with object lock."""

    locked = True

    def delete(self, key):
        if self.locked and key.startswith("packs/"):
            raise AccessError(f"{key} is locked")
        super().delete(key)


def test_what_is_locked_is_deleted_later(tmp_path):
    repository = small_repository(LockedStore())
    old, new = two_points(repository, tmp_path)
    repository.forget(old, "retention")

    first = again(repository).collect()
    repository.store.locked = False
    second = again(repository).collect()

    assert first.locked > 0 == first.packs
    assert second.locked == 0 < second.packs
    assert contents(again(repository), new) == NEW


def test_packs_that_are_condemned_twice_are_deleted_once(repository, tmp_path):
    old, new = two_points(repository, tmp_path)
    repository.forget(old, "retention")
    waiting = again(repository).begin(vm="app1", run="run-3", spool=tmp_path / "app1")
    again(repository).collect()
    again(repository).collect()
    waiting.void("nothing to save")

    assert len(again(repository).committed.collections.under_way()) == 1
    assert again(repository).collect().packs
    assert contents(again(repository), new) == NEW


@pytest.mark.parametrize("what", ["index/", "points/", "packs/"])
def test_a_damaged_repository_is_not_collected(tmp_path, what):
    store = MemoryStore()
    repository = small_repository(store)
    old, _ = two_points(repository, tmp_path)
    repository.forget(old, "retention")
    for key in objects(repository, what):
        if what != "points/" or key.endswith(again(repository).list_points()[0].session):
            store._objects[key] = store._objects[key][:-40] + bytes(40)
            if what == "packs/":
                store._objects[key] = bytes(len(store._objects[key]))
    before = objects(repository, "")

    with pytest.raises(IntegrityError):
        again(repository).collect()

    assert objects(repository, "") == before


def test_a_repository_with_unknown_features_is_not_collected(repository):
    repository.format.features["collect"] = ("second-sight",)

    with pytest.raises(UnsupportedError, match="second-sight"):
        repository.collect()


def test_what_verdicts_know_is_carried_on_and_old_ones_are_closed(repository, tmp_path):
    """An index that is needed mentions packs that are gone: one record tells of them, not one each time."""
    kept = backup(repository, tmp_path / "kept", {"root": SHARED}, run="run-0")
    for number in range(3):
        session = again(repository).begin(vm="db1", run=f"run-{number + 1}", spool=tmp_path / "spool")
        save(session, {"lost": random.Random(number).randbytes(30 * CHUNK)})
        save(session, {"root": random.Random(-number).randbytes(20 * CHUNK)})
        session.upload()
        recorded = session.recorded()
        session.seal(point({"filesystems.root": recorded["filesystems.root"]}))
        again(repository).collect()

    assert len(again(repository).committed.collections.under_way()) == 1
    for each in again(repository).points():
        assert again(repository).verify(each).sound
    assert again(repository).check_objects() == []
    assert kept.session in {each.session for each in again(repository).points()}


@pytest.fixture
def twice(repository, tmp_path):
    """The same disk, stored by two sessions at once; its points, and the packs of the newer session."""
    sessions = [repository.begin(vm=vm, run="run-1", spool=tmp_path / vm) for vm in ("db1", "db2")]
    points, packs = [], []
    for session in sorted(sessions, key=lambda each: each.id):
        before = set(objects(repository, "packs/"))
        save(session, OLD)
        session.upload()
        packs = sorted(set(objects(repository, "packs/")) - before)
    for session, vm in zip(sessions, ("db1", "db2"), strict=True):
        with session:
            points.append(session.seal(point(session.recorded(), vm)))
    return points, packs


def test_a_copy_whose_pack_is_gone_is_never_counted_on(repository, twice):
    points, packs = twice
    for pack in packs:
        repository.store.delete(pack)

    again(repository).collect(repack_below=0.9)

    assert [contents(again(repository), each) for each in points] == [OLD, OLD]


def test_a_copy_that_was_found_to_be_damaged_is_never_counted_on(repository, twice):
    points, packs = twice
    for pack in packs:
        body = bytearray(repository.store.get(pack))
        for at in range(100, len(body), 500):
            body[at] ^= 1
        repository.store.delete(pack)
        repository.store.put_if_absent(pack, bytes(body))
    found = again(repository).scrub()

    as_role("collector", repository).collect(repack_below=0.9)

    assert {layout.pack(name) for name in found.broken} == {*packs}
    assert found.damages == ()
    assert [contents(again(repository), each) for each in points] == [OLD, OLD]
    assert again(repository).scrub().sound


def test_a_damaged_record_of_who_is_at_work_says_what_to_do(repository, tmp_path):
    with repository.begin(vm="db1", run="run-1", spool=tmp_path / "s") as session:
        key = layout.open_record(session.id)
    repository.store.delete(key)
    repository.store.put_if_absent(key, b"rubbish that is no record at all, though long enough for one")

    with pytest.raises(
        IntegrityError, match="UTC: when no vmkeep of that time is any more, delete that object"
    ):
        again(repository).collect()

    repository.store.delete(key)
    again(repository).collect()
