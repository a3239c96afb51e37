"""Data epochs: what is written after a new one began is closed to those who only have the old keys."""

import contextlib
import random
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.disks.device import Extent
from vmkeep.errors import AccessError, ConflictError, InputError, IntegrityError, VmkeepError
from vmkeep.repository import Repository, Secret, epochs, layout, list_slots, sealed
from vmkeep.repository.copy import copy_point
from vmkeep.repository.crypto import Keys
from vmkeep.repository.manifest import SavedComponent
from vmkeep.repository.repair import repair
from vmkeep.repository.roles import ROLES
from vmkeep.stores import DirectoryStore, MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed, at, on
from vmkeep.testing.repositories import (
    CHUNK,
    KEY,
    BytesDisk,
    backup,
    contents,
    point,
    small_repository,
)
from vmkeep.testing.roles import RestrictedStore

PAPER = Secret.passphrase("in the safe")
STOLEN = Secret.key(b"s" * 32)
OLD = {"root": random.Random(1).randbytes(20 * CHUNK), "data": b"abc" * 9000}
NEW = {"root": random.Random(2).randbytes(12 * CHUNK), "data": b"abc" * 9000}
LATER = timedelta(days=30)


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def repository(store, tmp_path):
    """One point in the first epoch, then a second epoch."""
    repository = small_repository(store)
    repository.access.add_slot("stolen", STOLEN)
    backup(repository, tmp_path / "first", OLD)
    repository.access.begin_epoch(KEY)
    return repository


def opened(store, secret=KEY):
    return Repository.open(store, secret)


def all_contents(store):
    repository = opened(store)
    return [contents(repository, each) for each in repository.points()]


def test_old_and_new_points_are_read_and_sound(repository, store, tmp_path):
    backup(repository, tmp_path / "s", NEW, run="run-2")

    again = opened(store)
    assert all_contents(store) == [OLD, NEW]
    assert all(again.verify(each).sound for each in again.points())
    assert again.scrub().sound
    assert again.check_objects() == []
    assert again.collect().packs == 0


def test_who_has_only_the_old_keys_reads_and_confirms_nothing_new(repository, store, tmp_path):
    stolen = repository.keys.masters[0]
    before = {info.key for info in store.list()}
    backup(repository, tmp_path / "s", NEW | {"data": OLD["data"] * 2}, run="run-2")
    attacker = Keys([stolen], repository.keys.repository)
    new = {info.key: store.get(info.key) for info in store.list() if info.key not in before}

    for key, body in new.items():
        for kind in ("decision", "index", "run", "open"):
            with pytest.raises(IntegrityError):
                sealed.unseal(attacker, kind, key, body)
    chunks = [OLD["root"][at : at + CHUNK] for at in range(0, len(OLD["root"]), CHUNK)]
    ids = [attacker.newest.chunk_id(chunk) for chunk in chunks]
    assert not any(each in body for each in ids for key, body in new.items() if key.startswith("packs/"))
    with pytest.raises(AccessError, match=r"since .* only keys count that were added to its new data epoch"):
        opened(store, STOLEN)


def test_a_slot_of_an_older_epoch_is_removed_and_opens_nothing_when_put_back(store):
    repository = small_repository(store)
    repository.access.add_slot("stolen", STOLEN)
    kept = store.get("keys/stolen")

    assert repository.access.begin_epoch(KEY) == ("default", ["stolen"])

    store.put_if_absent("keys/stolen", kept)
    assert [slot.name for slot in list_slots(store)] == ["default"]
    with pytest.raises(AccessError):
        opened(store, STOLEN)


def test_slots_are_added_removed_and_checked_in_the_new_epoch(repository, store, tmp_path):
    repository.access.add_slot("paper", PAPER)
    backup(repository, tmp_path / "s", NEW, run="run-2")

    assert [contents(opened(store, PAPER), each) for each in opened(store).points()] == [OLD, NEW]
    assert opened(store).access.remove_slot("default", PAPER) == "paper"
    with pytest.raises(InputError, match="the key at hand opens no other slot"):
        opened(store, PAPER).access.remove_slot("paper", PAPER)


def test_a_third_epoch_opens_all_three(repository, store, tmp_path):
    backup(repository, tmp_path / "s", NEW, run="run-2")
    opened(store).access.begin_epoch(KEY)
    backup(opened(store), tmp_path / "t", OLD, run="run-3")

    assert all_contents(store) == [OLD, NEW, OLD]
    assert len(opened(store).keys.masters) == 3


def test_an_unchanged_disk_is_stored_anew_in_a_new_epoch_and_then_shared(repository, tmp_path):
    first = backup(repository, tmp_path / "s", OLD, run="run-2")
    second = backup(repository, tmp_path / "t", OLD, run="run-3")

    assert first.stats.stored > len(OLD["root"])
    assert second.stats.stored == 0


def test_what_is_inherited_unread_stays_in_its_epoch(repository, store, tmp_path):
    (old,) = repository.points()
    parent = old.components["filesystems.root"].disks["root"]
    changed = NEW["root"][:CHUNK] + OLD["root"][CHUNK:]
    with repository.begin(vm="db1", run="run-2", spool=tmp_path / "s") as session:
        disk = BytesDisk(changed)
        ref, stats = session.save_disk(disk, parent=parent, changed=[Extent(0, CHUNK)])
        session.record(SavedComponent("filesystems.root", {"root": ref}, stats=stats))
        session.upload()
        made = session.seal(point(session.recorded()))

    assert disk.read == CHUNK
    assert contents(opened(store), made) == {"root": changed}
    assert opened(store).verify(made).sound
    opened(store).forget(old, "test")
    opened(store).collect()
    assert contents(opened(store), made) == {"root": changed}


def test_who_is_at_work_when_an_epoch_begins_goes_on(store, tmp_path):
    repository, other = small_repository(store), opened(store)
    saved = backup(repository, tmp_path / "first", OLD)
    with other.begin(vm="db2", run="run-1", spool=tmp_path / "s") as session:
        opened(store).access.begin_epoch(KEY)
        backup(opened(store), tmp_path / "t", NEW, vm="db3")
        ref, stats = session.save_disk(BytesDisk(NEW["root"]))
        session.record(SavedComponent("filesystems.root", {"root": ref}, stats=stats))
        session.upload()
        session.seal(point(session.recorded(), "db2"))

    assert contents(repository, saved) == OLD
    assert [each.vm for each in repository.points()] == ["db1", "db2", "db3"]
    assert all_contents(store) == [OLD, {"root": NEW["root"]}, NEW]
    assert backup(repository, tmp_path / "u", OLD, vm="db4")
    assert repository.keys.newest.epoch == 2


def test_a_session_that_is_continued_in_a_new_epoch_is_whole(store, tmp_path):
    session = small_repository(store).begin(vm="db1", run="run-1", spool=tmp_path / "s")
    ref, stats = session.save_disk(BytesDisk(OLD["root"]))
    session.record(SavedComponent("filesystems.root", {"root": ref}, stats=stats))
    session.close()
    opened(store).access.begin_epoch(KEY)

    saved = backup(opened(store), tmp_path / "s", {"data": OLD["data"]})

    assert contents(opened(store), saved) == OLD


def test_who_cannot_open_the_new_epoch_writes_and_collects_nothing(store, tmp_path):
    repository = small_repository(store)
    repository.access.add_slot("stolen", STOLEN)
    left_behind = opened(store, STOLEN)
    saved = backup(repository, tmp_path / "first", OLD)
    repository.access.begin_epoch(KEY)

    for attempt in (
        lambda: left_behind.begin(vm="db1", run="run-2", spool=tmp_path / "s"),
        left_behind.collect,
        lambda: left_behind.access.add_slot("mine", STOLEN),
    ):
        with pytest.raises((AccessError, ConflictError)):
            attempt()
    assert contents(left_behind, saved) == OLD


@pytest.mark.parametrize("fault", [Fault.KILLED, Fault.KILLED_AFTER, Fault.LOST, Fault.AWAY])
def test_an_epoch_whose_beginning_ends_at_any_request_harms_nothing(tmp_path, fault):
    number = 0
    while True:
        number += 1
        folder, store = tmp_path / f"{number}", MemoryStore()
        backup(small_repository(store), folder / "a", OLD)
        faulty = FaultyStore(store, at(number, fault))
        try:
            opened(faulty).access.begin_epoch(KEY)
        except (Killed, VmkeepError):
            pass
        else:
            if len(faulty.requests) < number:
                break

        backup(opened(store), folder / "b", NEW, run="run-2")
        assert all_contents(store) == [OLD, NEW]
        opened(store).access.begin_epoch(KEY)
        backup(opened(store), folder / "c", OLD, run="run-3")
        assert all_contents(store) == [OLD, NEW, OLD]
        assert opened(store).scrub().sound
        assert len([info for info in store.list("keys/") if "epochs" not in info.key]) == 1
    assert number > 8


def test_of_two_who_begin_one_at_the_same_time_one_wins_and_nobody_is_locked_out(store, tmp_path):
    repository = small_repository(store)
    backup(repository, tmp_path / "s", OLD)

    def meanwhile(request):
        if request.verb == "put" and request.key.startswith("keys/epochs/"):
            opened(store).access.begin_epoch(KEY)

    with pytest.raises(ConflictError, match="somebody else began data epoch 2"):
        opened(FaultyStore(store, meanwhile)).access.begin_epoch(KEY)

    assert all_contents(store) == [OLD]
    assert len(opened(store).keys.masters) == 2
    opened(store).access.begin_epoch(KEY)
    assert all_contents(store) == [OLD]


def test_who_tidies_up_never_removes_the_slots_of_a_later_epoch(store):
    repository = small_repository(store)

    def meanwhile(request):
        if request.verb == "delete" and request.key == "keys/default":
            opened(store).access.begin_epoch(KEY)

    opened(FaultyStore(store, meanwhile)).access.begin_epoch(KEY)

    assert len(opened(store).keys.masters) == 3
    assert repository.keys.of(3) == opened(store).keys.newest


def test_a_slot_that_is_added_while_an_epoch_begins_is_asked_for_again(store):
    repository = small_repository(store)

    def meanwhile(request):
        if request.verb == "put" and request.key == "keys/paper":
            opened(store).access.begin_epoch(KEY)

    repository.store = FaultyStore(store, meanwhile)
    with pytest.raises(ConflictError, match="add the slot again"):
        repository.access.add_slot("paper", PAPER)


def test_what_cannot_be_deleted_keeps_no_epoch_from_beginning(store):
    repository = small_repository(store)
    repository.store = RestrictedStore(store, ROLES["writer"].__class__(("keys/", "format"), ("keys/",)))

    repository.access.begin_epoch(KEY)

    assert len(opened(store).keys.masters) == 2


def test_a_lost_or_damaged_record_is_no_disaster(repository, store, tmp_path):
    repository.access.add_slot("paper", PAPER)
    backup(repository, tmp_path / "s", NEW, run="run-2")
    key = layout.epoch(2)
    first = store.get(key)
    store._objects[key] = first.replace(b"begun", b"began")
    with pytest.raises(Killed):  # slots of one that was never begun lie there, too
        opened(FaultyStore(store, on("put", "keys/epochs/", Fault.KILLED))).access.begin_epoch(KEY)

    assert all_contents(store) == [OLD, NEW]
    backup(opened(store), tmp_path / "t", OLD, run="run-3")
    store.delete(key)
    assert [contents(opened(store, PAPER), each) for each in opened(store).points()] == [OLD, NEW, OLD]
    assert store.get(key) == first  # put again
    opened(store).access.begin_epoch(KEY)
    assert all_contents(store) == [OLD, NEW, OLD]
    assert len(opened(store).keys.masters) == 3


def test_the_slots_of_an_epoch_that_was_never_begun_do_not_count(store, tmp_path):
    repository = small_repository(store)
    with pytest.raises(Killed):
        opened(FaultyStore(store, on("put", "keys/epochs/", Fault.KILLED))).access.begin_epoch(KEY)

    backup(opened(store), tmp_path / "s", OLD)

    assert opened(store).keys.masters == repository.keys.masters
    assert [*store.list("keys/epochs/")] == []


@pytest.mark.usefixtures("repository")
def test_a_damaged_record_without_a_copy_is_said(store):
    key = layout.epoch(2)
    store._objects[key] = store.get(key).replace(b"begun", b"began")
    for slot in [each for each in store._objects if each.endswith("/default")]:
        store._objects[slot] = store._objects[slot].replace(b"begins", b"b-gins")

    with pytest.raises(IntegrityError, match="keys/epochs/00000002 is damaged"):
        opened(store)


def test_a_record_of_another_repository_does_not_fit():
    first, second = bytes(32), bytes([1]) * 32
    body = epochs.encode(2, "ab", [first, second], b"r" * 16)
    epoch, record = epochs._decode("k", body)

    assert epochs.masters(epoch, record, second, b"r" * 16) == (first, second)
    for master, repository in ((first, b"r" * 16), (second, b"q" * 16)):
        with pytest.raises(IntegrityError, match="does not authenticate"):
            epochs.masters(epoch, record, master, repository)


def test_all_that_is_needed_can_be_encrypted_again(repository, store, tmp_path):
    backup(repository, tmp_path / "s", NEW, run="run-2")
    before = {info.key for info in store.list("packs/")}

    done = opened(store).collect(renew=True)

    assert done.repacked.packs > 0
    again = opened(store)
    assert again.access.old_packs() == 0
    assert all_contents(store) == [OLD, NEW]
    assert again.scrub().sound
    assert before - {info.key for info in store.list("packs/")}
    assert opened(store).collect(renew=True).repacked.packs == 0


@pytest.mark.parametrize("fault", [Fault.KILLED, Fault.LOST])
def test_encrypting_again_may_end_at_any_request(tmp_path, fault):
    number, step = 1, 5
    while True:
        folder, store = tmp_path / f"{number}", MemoryStore()
        repository = small_repository(store)
        backup(repository, folder / "a", OLD)
        repository.access.begin_epoch(KEY)
        faulty = FaultyStore(store, at(number, fault))
        with contextlib.suppress(Killed, VmkeepError):
            opened(faulty).collect(renew=True)
        if len(faulty.requests) < number:
            break
        assert all_contents(store) == [OLD]
        opened(store).collect(renew=True, now=datetime.now(UTC) + LATER)
        assert all_contents(store) == [OLD]
        assert opened(store).access.old_packs() == 0
        number += step


def test_what_lost_indexes_described_is_found_again_in_packs_of_all_epochs(repository, store, tmp_path):
    backup(repository, tmp_path / "s", NEW, run="run-2")
    for info in [*store.list("index/")]:
        store.delete(info.key)

    assert all_contents(store) == [OLD, NEW]


def test_a_cached_index_remembers_the_epochs(repository, store, tmp_path):
    backup(repository, tmp_path / "s", NEW, run="run-2")
    for _ in range(2):
        again = Repository.open(store, KEY, cache=tmp_path / "cache")
        assert [contents(again, each) for each in again.points()] == [OLD, NEW]


def test_damage_of_an_old_epoch_is_repaired_from_a_copy(repository, store, tmp_path):
    backup(repository, tmp_path / "s", NEW, run="run-2")
    copy = small_repository(MemoryStore())
    for each in repository.points():
        copy_point(each, repository, copy, run="copy", spool=tmp_path / "c")
    for info in [*store.list("packs/")]:
        body = bytearray(store.get(info.key))
        body[len(body) // 2] ^= 1
        store._objects[info.key] = bytes(body)
    found = opened(store).scrub()
    assert not found.sound

    repair(opened(store), copy, found.damages, broken=found.broken)

    assert all_contents(store) == [OLD, NEW]


def test_a_directory_holds_epochs_too(tmp_path):
    store = DirectoryStore(tmp_path / "store")
    backup(small_repository(store), tmp_path / "a", OLD)
    opened(store).access.begin_epoch(KEY)
    backup(opened(store), tmp_path / "b", NEW, run="run-2")
    shutil.copytree(tmp_path / "store", tmp_path / "moved")

    assert all_contents(DirectoryStore(tmp_path / "moved")) == [OLD, NEW]
    with pytest.raises(InputError, match="cannot be the name of a key slot"):
        opened(store).access.add_slot("epochs", PAPER)
