"""Whatever goes wrong, the last good point restores, nothing wrong is returned, and a new backup works."""

import contextlib
import errno
import os
import random
from itertools import count

import pytest

from vmkeep.errors import (
    AccessError,
    ConflictError,
    InputError,
    IntegrityError,
    TemporaryError,
    VmkeepError,
)
from vmkeep.repository import Repository, Secret, sealed
from vmkeep.repository import pack as packs
from vmkeep.repository.decision import Decision, decide
from vmkeep.stores import DirectoryStore, MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed, at, flip, on
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

OLD = {"root": random.Random(1).randbytes(30 * CHUNK), "data": bytes(9 * CHUNK) + b"abc"}
NEW = {"root": OLD["root"][: 20 * CHUNK] + random.Random(2).randbytes(15 * CHUNK), "data": b"new" * 5000}
DUMP = {"dump": random.Random(3).randbytes(60_000)}


@pytest.fixture
def memory(tmp_path):
    """A store with one good point."""
    store = MemoryStore()
    backup(small_repository(store), tmp_path / "first", OLD, DUMP)
    return store


def reopened(store):
    return Repository.open(store, KEY)


def try_backup(store, spool):
    backup(reopened(store), spool, NEW, run="run-2")


def requests_of_a_backup(tmp_path):
    store = MemoryStore()
    backup(small_repository(store), tmp_path / "a", OLD, DUMP)
    faulty = FaultyStore(store)
    try_backup(faulty, tmp_path / "b")
    return faulty.requests


@pytest.mark.parametrize("fault", [Fault.KILLED, Fault.KILLED_AFTER])
def test_a_backup_that_is_killed_at_any_request_harms_nothing(tmp_path, fault):
    for number in range(1, len(requests_of_a_backup(tmp_path)) + 1):
        folder = tmp_path / f"{fault.name}{number}"
        store = MemoryStore()
        good = backup(small_repository(store), folder / "first", OLD, DUMP)

        with pytest.raises(Killed):
            try_backup(FaultyStore(store, at(number, fault)), folder / "spool")

        assert contents(reopened(store), good) == OLD | DUMP
        later = backup(reopened(store), folder / "spool", NEW, run="run-2")
        assert contents(reopened(store), later) == NEW
        assert all(contents(reopened(store), each) for each in reopened(store).points())


def test_a_lost_answer_of_any_request_is_resolved_by_trying_again(tmp_path):
    for number in range(1, len(requests_of_a_backup(tmp_path)) + 1):
        folder = tmp_path / str(number)
        store = MemoryStore()
        backup(small_repository(store), folder / "first", OLD, DUMP)
        faulty = FaultyStore(store, at(number, Fault.LOST))

        with contextlib.suppress(TemporaryError):  # for a pack, the same backup tries again
            try_backup(faulty, folder / "spool")
        assert len(faulty.requests) >= number
        try_backup(faulty, folder / "spool")

        points = reopened(store).points("db1")
        assert contents(reopened(store), points[-1]) == NEW
        assert len(points) <= 3


def test_a_lost_answer_of_the_seal_makes_one_point_and_not_two(memory, tmp_path):
    faulty = FaultyStore(memory, on("put", "points/", Fault.LOST))
    session = reopened(faulty).begin(vm="db1", run="run-2", spool=tmp_path / "spool")
    save(session, NEW)
    session.upload()
    with pytest.raises(TemporaryError):
        session.seal(point(session.recorded()))

    sealed = session.seal(point(session.recorded()))

    assert [each.session for each in reopened(memory).points()][1:] == [sealed.session]


def test_a_process_that_died_behind_its_seal_finds_its_point(memory, tmp_path):
    faulty = FaultyStore(memory, on("put", "points/", Fault.KILLED_AFTER))
    session = reopened(faulty).begin(vm="db1", run="run-2", spool=tmp_path / "spool")
    save(session, NEW)
    session.upload()
    with pytest.raises(Killed):
        session.seal(point(session.recorded()))
    session.close()

    again = reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool")

    assert again.resumed
    assert again.seal(point(again.recorded())).session == session.id
    assert len(reopened(memory).points()) == 2


def test_a_store_that_went_away_is_continued_without_reading_or_uploading_again(memory, tmp_path):
    old = {info.key for info in memory.list("packs/")}
    first = []

    def away_after_one_pack(request):
        if request.verb == "put" and request.key.startswith("packs/"):
            first.append(request.key)
            return None if request.key == first[0] else Fault.AWAY
        return None

    session = reopened(FaultyStore(memory, away_after_one_pack)).begin(
        vm="db1", run="run-2", spool=tmp_path / "spool"
    )
    save(session, NEW)
    with pytest.raises(TemporaryError, match="does not answer"):
        session.upload()
    session.close()
    before = {info.key for info in memory.list("packs/")}
    assert before - old == {first[0]}

    again = reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool")

    assert again.id == session.id
    assert again.recorded().keys() == {"filesystems.root", "filesystems.data"}
    second = FaultyStore(memory)
    again._uploads._store = second
    again.upload()
    assert not before & {request.key for request in second.requests}
    sealed = again.seal(point(again.recorded()))
    assert contents(reopened(memory), sealed) == NEW


def test_chunks_of_an_interrupted_component_are_not_stored_again(memory, tmp_path):
    session = reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool")
    content = random.Random(7).randbytes(100 * CHUNK)
    session.save_disk(BytesDisk(content))
    session.close()

    with reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool") as again:
        _, stats = again.save_disk(BytesDisk(content))

    assert 0 < stats.new < 40 * CHUNK


def test_another_run_starts_anew(memory, tmp_path):
    session = reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool")
    save(session, NEW)
    session.close()

    again = reopened(memory).begin(vm="db1", run="run-3", spool=tmp_path / "spool")

    assert not again.resumed
    assert again.recorded() == {}
    assert again.id != session.id
    assert [info.key for info in memory.list("open/")] == [f"open/{again.id}"]


def test_the_spool_of_another_vm_or_repository_is_refused(memory, tmp_path):
    reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool").close()

    with pytest.raises(InputError, match="belongs to a backup of db1, not of app1"):
        reopened(memory).begin(vm="app1", run="run-2", spool=tmp_path / "spool")
    with pytest.raises(InputError, match="another repository"):
        small_repository(MemoryStore()).begin(vm="db1", run="run-2", spool=tmp_path / "spool")


def fence(store, session):
    key = f"points/db1/{session.id}"
    decide(store, reopened(store).keys, key, Decision("collector", None, "no sign of life"))


def test_a_fenced_session_never_seals(memory, tmp_path):
    session = reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool")
    save(session, NEW)
    session.upload()
    fence(memory, session)

    with pytest.raises(ConflictError, match="declared dead"):
        session.seal(point(session.recorded()))
    assert len(reopened(memory).points()) == 1
    assert contents(reopened(memory), backup(reopened(memory), tmp_path / "spool", NEW)) == NEW


def test_a_session_that_was_fenced_while_it_was_interrupted_starts_anew(memory, tmp_path):
    session = reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool")
    save(session, NEW)
    session.close()
    fence(memory, session)

    with pytest.raises(ConflictError, match="no sign of life"):
        reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool")
    assert not reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool").resumed


def test_a_wrong_key_opens_nothing(memory):
    with pytest.raises(AccessError, match="wrong key: it does not open slot 'default'"):
        Repository.open(memory, Secret.key(bytes(32)))
    with pytest.raises(AccessError, match="opens with a key file"):
        Repository.open(memory, Secret.passphrase("guess"))


def objects(store):
    return {info.key: store.get(info.key) for info in store.list()}


def positions(key, data):
    """Return places in every part of an object's format."""
    if not key.startswith("packs/"):
        return sorted({*range(0, len(data), max(1, len(data) // 40)), len(data) - 1})
    head, record = packs.HEADER.size, packs.RECORD.size
    footer = packs.footer_length(data[-16:])
    parts = [0, head - 1, head, head + 33, head + 37, head + 44, head + record, head + record + 900]
    parts = [each for each in parts if each < len(data)]
    return [*parts, len(data) - 16 - footer, len(data) - 17, *range(len(data) - 16, len(data))]


def survey(store, good):
    """Return what a damaged store still gives; everything it gives must be right."""
    try:
        repository = reopened(store)
        faults = repository.check_objects()
        points = repository.points("db1")
        if not points:
            return "missing"
        found = contents(repository, points[0])
        damages = repository.verify(points[0]).damages
    except VmkeepError:
        return "refused"
    assert points[0] == good
    assert found == OLD | DUMP
    assert not damages
    return "noticed" if faults else "right"


def test_no_flipped_bit_anywhere_ever_gives_wrong_data(tmp_path):
    store = MemoryStore()
    good = backup(small_repository(store), tmp_path / "first", OLD, DUMP)

    some = [key for key in objects(store) if key.startswith("packs/")][3:]
    for key, data in objects(store).items():
        if key in some:
            continue
        outcomes = set()
        for position in positions(key, data):
            damaged = MemoryStore()
            damaged._objects = {**store._objects, key: flip(data, position, position % 8)}
            outcomes.add(survey(damaged, good))
        # A lost index is found again in the packs; a record or a point has no second copy.
        expected = {"index": {"right"}, "packs": {"refused", "right"}}.get(key.split("/")[0], {"refused"})
        assert outcomes == expected, key


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_no_object_that_was_cut_off_ever_gives_wrong_data(tmp_path, share):
    store = MemoryStore()
    good = backup(small_repository(store), tmp_path / "first", OLD, DUMP)

    for key, data in objects(store).items():
        damaged = MemoryStore()
        damaged._objects = {**store._objects, key: data[: int(len(data) * share)]}

        outcome = survey(damaged, good)

        assert outcome != "right" or key.startswith("index/"), key


def test_a_missing_object_is_noticed_and_named(tmp_path):
    store = MemoryStore()
    good = backup(small_repository(store), tmp_path / "first", OLD, DUMP)

    for key in objects(store):
        damaged = MemoryStore()
        damaged._objects = {name: data for name, data in store._objects.items() if name != key}
        expected = {"index": "right", "points": "missing"}.get(key.split("/")[0], "refused")
        assert survey(damaged, good) == expected, key


def test_damage_is_located_to_pack_chunk_component_and_offset(memory):
    repository = reopened(memory)
    good = repository.points()[0]
    disk = good.components["filesystems.root"].disks["root"]
    (offset, chunk), *_ = [each for each in repository.trees.disk_chunks(disk) if each[0] == 7 * CHUNK]
    place = repository.trees.chunks.locate(chunk)
    key = f"packs/{place.pack.name.hex()[:2]}/{place.pack.name.hex()}"
    memory._objects[key] = flip(memory._objects[key], place.offset + 100)

    report = repository.verify(good)

    (damage,) = report.damages
    assert (damage.place.component, damage.place.item) == ("filesystems.root", "disk root")
    assert (damage.place.offset, damage.place.length) == (offset, CHUNK)
    assert chunk.hex() in str(damage)
    assert place.pack.name.hex() in str(damage)
    with pytest.raises(IntegrityError, match=f"VM db1: disk root cannot be restored: at {offset}: chunk"):
        repository.restore_disk(disk, BytesDisk(disk.size), what="VM db1: disk root")


def test_a_missing_pack_is_named_without_reading_any(memory):
    first, *_ = memory.list("packs/")
    memory.delete(first.key)

    (fault,) = reopened(memory).check_objects()

    assert (fault.pack, fault.expected, fault.found) == (first.key, first.size, None)


def test_a_sample_of_a_point_is_drawn_by_its_seed(memory):
    repository = reopened(memory)
    good = repository.points()[0]

    sizes = {repository.verify(good, share=0.3, seed=5).size for _ in range(3)}

    assert len(sizes) == 1
    assert 0 < sizes.pop() < repository.verify(good).size


def test_damage_of_one_point_does_not_hide_the_others(memory, tmp_path):
    backup(reopened(memory), tmp_path / "spool", NEW, run="run-2")
    key = f"points/db1/{reopened(memory).points()[0].session}"
    memory._objects[key] = flip(memory._objects[key], 200)
    damaged = []

    points = reopened(memory).points(damaged=lambda info, _error: damaged.append(info.key))

    assert damaged == [key]
    assert contents(reopened(memory), points[0]) == NEW
    with pytest.raises(IntegrityError, match=f"{key} is damaged"):
        reopened(memory).points()


def test_a_backup_stores_again_what_a_lost_index_described(memory, tmp_path):
    (info,) = memory.list("index/")
    memory.delete(info.key)

    saved = backup(reopened(memory), tmp_path / "spool", OLD, run="run-2")

    assert saved.stats.new > 30 * CHUNK
    assert contents(reopened(memory), saved) == OLD


def test_packs_that_are_condemned_are_never_counted_on(memory, tmp_path):
    repository = reopened(memory)
    good = repository.points()[0]
    disk = good.components["filesystems.root"].disks["root"]
    names = [info.key.rpartition("/")[2] for info in memory.list("packs/")]
    key = "gc/1/condemned"
    record = f'{{"packs":{names}}}'.replace("'", '"').encode()
    memory.put_if_absent(key, sealed.seal(repository.keys, "condemned", key, record))

    with reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool") as session:
        _, stats = session.save_disk(BytesDisk(OLD["root"]), parent=disk, changed=[])
    assert stats.new == len(OLD["root"])

    memory.put_if_absent("gc/1/done", b"")
    with reopened(memory).begin(vm="db1", run="run-3", spool=tmp_path / "spool") as session:
        _, stats = session.save_disk(BytesDisk(OLD["root"]), parent=disk, changed=[])
    assert stats.new == stats.read == 0


def test_a_full_spool_is_a_clear_error_and_is_continued(memory, tmp_path, monkeypatch):
    session = reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool")
    save(session, {"data": NEW["data"]})
    written = 0
    real = os.writev

    def full(descriptor, parts):
        nonlocal written
        written += sum(map(len, parts))
        if written > 50_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, parts)

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        with pytest.raises(TemporaryError, match="No space left on device; free some space there"):
            session.save_disk(BytesDisk(NEW["root"]))
    with pytest.raises(TemporaryError, match="begin the session again"):
        session.save_disk(BytesDisk(NEW["root"]))
    session.close()

    again = reopened(memory).begin(vm="db1", run="run-2", spool=tmp_path / "spool")
    assert again.recorded().keys() == {"filesystems.data"}
    save(again, {"root": NEW["root"]})
    again.upload()
    assert contents(reopened(memory), again.seal(point(again.recorded()))) == NEW


@pytest.mark.parametrize("call", ["writev", "fsync"])
def test_a_disk_that_is_full_at_any_write_of_the_spool_costs_no_data(tmp_path, monkeypatch, call):
    real = getattr(os, call)
    for number in count(1):
        folder, store, calls = tmp_path / f"{number}", MemoryStore(), 0
        good = backup(small_repository(store), folder / "a", OLD)

        def full(*arguments, number=number):
            nonlocal calls
            calls += 1
            if calls >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with contextlib.suppress(TemporaryError):
                try_backup(store, folder / "spool")
        if calls < number:
            break
        assert contents(reopened(store), good) == OLD
        assert all(contents(reopened(store), each) in (OLD, NEW) for each in reopened(store).points())
        try_backup(store, folder / "spool")
        assert contents(reopened(store), reopened(store).points()[-1]) == NEW
    assert number > 8


def test_a_full_disk_keeps_no_pack_from_being_rewritten_later(tmp_path, monkeypatch):
    store = MemoryStore()
    repository = small_repository(store)
    repository.forget(backup(repository, tmp_path / "a", OLD), "test")
    saved = backup(repository, tmp_path / "a", NEW, run="run-2")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        with pytest.raises(TemporaryError, match="No space left on device"):
            reopened(store).collect(repack_below=0.99)
    assert contents(reopened(store), saved) == NEW

    assert reopened(store).collect(repack_below=0.99).repacked.packs > 0
    assert contents(reopened(store), saved) == NEW


def test_a_full_store_is_a_clear_error_and_keeps_no_half_object(tmp_path, monkeypatch):
    store = DirectoryStore(tmp_path / "store")
    good = backup(small_repository(store), tmp_path / "first", OLD)
    before = {info.key for info in store.list()}

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TemporaryError, match="No space left on device; nothing of it was kept"):
            store.put_if_absent("points/db1/x", b"content")

    assert {info.key for info in store.list()} == before
    assert contents(reopened(store), good) == OLD


def test_a_store_that_is_cut_off_or_flips_bits_on_the_way_never_gives_wrong_data(memory):
    good = reopened(memory).points()[0]
    for fault in (Fault.CUT, Fault.FLIPPED):
        repository = reopened(FaultyStore(memory, on("get", "packs/", fault, times=1000)))
        with pytest.raises(IntegrityError):
            contents(repository, good)
