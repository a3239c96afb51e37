"""Packs of which little is needed are rewritten: their space is free, and nobody notices anything else."""

import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.errors import TemporaryError
from vmkeep.repository import Repository, SavedComponent
from vmkeep.repository.decision import Decision, decide
from vmkeep.repository.index import ENTRY, Index, PackInfo
from vmkeep.repository.mark import Live
from vmkeep.repository.needed import choose
from vmkeep.repository.roles import ROLES
from vmkeep.stores import MemoryStore
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

KEPT = random.Random(1).randbytes(5 * CHUNK)
LOST = random.Random(2).randbytes(8 * CHUNK)
HALF = 0.5
LATER = timedelta(days=8)


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def sparse(store, tmp_path):
    """A repository with one pack, of which a good third is needed: by a point that stored nothing itself."""
    repository = small_repository(store)
    with repository.begin(vm="db1", run="run-1", spool=tmp_path / "old") as session:
        disks = {"lost": LOST, "root": KEPT}
        saved = {name: session.save_disk(BytesDisk(content))[0] for name, content in disks.items()}
        session.record(SavedComponent("filesystems.all", saved))
        session.upload()
        old = session.seal(point(session.recorded()))
    backup(repository, tmp_path / "new", {"root": KEPT}, run="run-2")
    repository.forget(old, "retention")
    return again(repository)


def again(repository):
    """The same repository as another process has it."""
    return Repository.open(repository.store, KEY)


def keys(store, prefix):
    return [info.key for info in store.list(prefix)]


def used(store):
    return sum(info.size for info in store.list("packs/"))


def assert_whole(store):
    repository = Repository.open(store, KEY)
    (kept,) = repository.points()
    assert contents(repository, kept) == {"root": KEPT}
    assert repository.verify(kept).sound
    assert repository.check_objects() == []
    assert repository.scrub().sound


def test_the_space_of_a_sparse_pack_is_free(sparse, store):
    before = keys(store, "packs/")

    done = sparse.collect(repack_below=HALF)

    assert (done.packs, done.repacked.packs) == (1, 1)
    assert len(KEPT) < used(store) < len(KEPT) + CHUNK
    assert set(before).isdisjoint(keys(store, "packs/"))
    assert_whole(store)


def test_asking_first_says_the_same_and_changes_nothing(sparse, store):
    before = keys(store, "")

    expected = sparse.unneeded(repack_below=HALF)

    assert keys(store, "") == before
    done = again(sparse).collect(repack_below=HALF)
    assert expected.repacked == done.repacked.packs == 1
    assert (expected.size, expected.rewritten) == (done.size, done.repacked.size)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_pack_of_which_enough_is_needed_stays(sparse, store, share):
    before = keys(store, "packs/")

    assert sparse.collect(repack_below=share).packs == 0

    assert keys(store, "packs/") == before
    assert_whole(store)


def test_a_second_time_there_is_nothing_to_do(sparse, store):
    sparse.collect(repack_below=HALF)
    before = keys(store, "")

    done = again(sparse).collect(repack_below=HALF)

    assert (done.packs, done.repacked.packs, keys(store, "")) == (0, 0, before)


def test_a_small_pack_that_is_needed_whole_is_not_rewritten(store, tmp_path):
    repository = small_repository(store)
    backup(repository, tmp_path, {"root": b"x"})

    assert repository.collect(repack_below=0.99).repacked.packs == 0


def test_several_sparse_packs_become_one(store, tmp_path):
    repository = small_repository(store)
    for number in range(4):
        with repository.begin(vm="db1", run=f"run-{number}", spool=tmp_path) as session:
            save(session, {f"d{number}": random.Random(number).randbytes(CHUNK)})
            extra = random.Random(-1 - number).randbytes(9 * CHUNK)
            session.save_disk(BytesDisk(extra))  # into the same pack as what follows
            save(session, {f"e{number}": random.Random(9 + number).randbytes(CHUNK)})
            session.upload()
            session.seal(point(session.recorded()))
    before = len(keys(store, "packs/"))

    done = again(repository).collect(repack_below=HALF)

    assert (before, done.repacked.packs, len(keys(store, "packs/"))) == (8, 4, 5)
    for each in again(repository).points():
        assert again(repository).verify(each).sound


def test_what_was_rewritten_is_rewritten_again_and_leaves_no_more_than_tombstones(sparse, store, tmp_path):
    sparse.collect(repack_below=HALF)
    (kept,) = again(sparse).points()
    third = backup(again(sparse), tmp_path / "third", {"root": KEPT[: 2 * CHUNK]}, run="run-3")
    again(sparse).forget(kept, "retention")

    done = again(sparse).collect(repack_below=HALF)
    again(sparse).collect(repack_below=HALF)

    assert done.repacked.packs == 1
    assert contents(again(sparse), third) == {"root": KEPT[: 2 * CHUNK]}
    assert len(keys(store, "repacked/")) == 1
    assert len(keys(store, "forgotten/")) == 3
    again(sparse).forget(third, "retention")
    again(sparse).collect()
    assert keys(store, "packs/") == keys(store, "index/") == keys(store, "repacked/") == []


def test_a_writer_that_counts_on_what_was_not_copied_keeps_the_pack(sparse, store, tmp_path):
    with again(sparse).begin(vm="db1", run="run-3", spool=tmp_path / "third") as session:
        save(session, {"lost": LOST})

        assert again(sparse).collect(repack_below=HALF).waits_for

        session.upload()
        third = session.seal(point(session.recorded()))
    again(sparse).collect(repack_below=HALF)
    assert contents(again(sparse), third) == {"lost": LOST}
    assert len(keys(store, "packs/")) == 2


def test_a_reader_with_an_old_index_finds_what_was_moved(sparse):
    stale = again(sparse)
    (kept,) = stale.points()
    stale.committed.refresh()

    sparse.collect(repack_below=HALF)

    assert contents(stale, kept) == {"root": KEPT}


def test_a_clock_that_is_behind_harms_nothing(sparse, store):
    long_ago = datetime(2001, 1, 1, tzinfo=UTC)

    assert sparse.collect(repack_below=HALF, now=long_ago).packs == 1

    assert_whole(store)


def test_a_pack_that_is_damaged_is_left_and_named(sparse, store):
    (key,) = keys(store, "packs/")
    location = sparse.committed.refresh().locate(sparse.keys.newest.chunk_id(KEPT[:CHUNK]))
    body = bytearray(store._objects[key])
    body[location.offset + 100] ^= 1
    store._objects[key] = bytes(body)

    done = again(sparse).collect(repack_below=HALF)

    assert (done.packs, done.repacked.packs) == (0, 0)
    (told,) = done.repacked.damaged
    assert key.rpartition("/")[2] in told
    assert keys(store, "packs/") == [key]


def test_who_was_taken_for_dead_while_it_rewrote_changes_nothing(sparse, store):
    def taken_for_dead(request):
        if request.verb == "put" and request.key.startswith("index/"):
            (session,) = (key.removeprefix("open/") for key in keys(store, "open/"))
            decide(store, sparse.keys, f"repacked/{session}", Decision("collector", None, "dead"))

    done = Repository.open(FaultyStore(store, taken_for_dead), KEY).collect(repack_below=HALF)

    assert (done.repacked.packs, done.repacked.size) == (0, 0)
    assert_whole(store)
    again(sparse).collect()
    assert len(keys(store, "packs/")) == 1


def test_a_store_that_goes_away_lets_nobody_wait(sparse, store):
    away = FaultyStore(store, on("put", "index/", Fault.AWAY))

    with pytest.raises(TemporaryError):
        Repository.open(away, KEY).collect(repack_below=HALF)

    assert keys(store, "open/") == []
    assert again(sparse).collect(repack_below=HALF).packs == 2
    assert_whole(store)


def test_who_died_while_it_rewrote_is_taken_for_dead_like_a_writer(sparse, store):
    dead = FaultyStore(store, on("put", "repacked/", Fault.KILLED))
    with pytest.raises(BaseException, match="repacked"):
        Repository.open(dead, KEY).collect(repack_below=HALF)
    assert len(keys(store, "packs/")) == 2

    again(sparse).collect(now=datetime.now(UTC) + LATER)

    assert len(keys(store, "packs/")) == 1
    assert keys(store, "open/") == []
    assert_whole(store)


def test_only_one_rewrites_at_a_time(sparse, store):
    results = []

    def meanwhile(request):
        if request.verb == "put" and request.key.startswith("repacked/"):
            results.append(again(sparse).collect(repack_below=HALF))

    Repository.open(FaultyStore(store, meanwhile), KEY).collect(repack_below=HALF)

    assert [each.repacked.packs for each in results] == [0]
    assert_whole(store)


@pytest.mark.usefixtures("sparse")
def test_a_collector_needs_no_more_rights_than_its_role_has(store):
    restricted = RestrictedStore(store, ROLES["collector"])

    assert Repository.open(restricted, KEY).collect(repack_below=HALF).packs == 1

    assert restricted.denied == []
    assert_whole(store)


# Which copies are needed.

copies = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=20, unique=True)


def index_of(placed):
    """An index of chunks (by number) in packs; all ids begin alike, so only the rest tells them apart."""
    entries = np.zeros(len(placed), ENTRY)
    for entry, (chunk, pack) in zip(entries, placed, strict=True):
        entry["id"][16] = chunk
        entry["pack"] = pack
    return Index.build([PackInfo(bytes([number]) * 16, 1) for number in range(5)], entries)


@given(copies, st.frozensets(st.integers(0, 5)), st.frozensets(st.integers(0, 4)))
def test_of_every_needed_chunk_one_copy_is_kept_that_others_do_not_delete(placed, wanted, fate_open):
    index = index_of(placed)
    live = Live(index, np.array([entry["id"][16] in wanted for entry in index.entries], bool))
    sessions = {pack.name: f"session {number}" for number, pack in enumerate(index.packs)}

    chosen = choose(live, sessions, frozenset(index.packs[number].name for number in fate_open))

    kept = {(int(e["id"][16]), int(e["pack"])) for e in index.entries[chosen.entries]}
    for chunk in range(6):
        every = {pack for number, pack in placed if number == chunk and number in wanted}
        certain = every - fate_open
        expected = {max(certain)} if certain else every
        assert {pack for number, pack in kept if number == chunk} == expected
