"""A collector that dies or meets others at any request: what is kept is whole, and the next ends its work.

Everything is done twice: deleting only, and with rewriting packs of which little is needed.
"""

import random
import threading
from contextlib import suppress
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from vmkeep.errors import ConflictError, NotFoundError, TemporaryError
from vmkeep.repository import Repository, SavedComponent
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed, at
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

SHARED = random.Random(1).randbytes(8 * CHUNK)
OLD = {"root": SHARED, "data": random.Random(2).randbytes(18 * CHUNK)}
NEW = {"root": SHARED, "data": random.Random(3).randbytes(18 * CHUNK)}
NEVER, ALWAYS = timedelta(days=7), timedelta(0)


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """Processes die here, not the machine: there is nothing to flush to the disk, a thousand times."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def opened(store):
    return Repository.open(store, KEY)


def backup_in_one(repository, spool, disks):
    """Save disks as one component, so that they share packs."""
    with repository.begin(vm="db1", run="run-1", spool=spool) as session:
        saved = {name: session.save_disk(BytesDisk(content))[0] for name, content in disks.items()}
        session.record(SavedComponent("filesystems.all", saved))
        session.upload()
        return session.seal(point(session.recorded()))


@cache
def template():
    """Made once for all tests."""
    store = MemoryStore()
    repository = small_repository(store)
    with TemporaryDirectory() as folder:
        old = backup_in_one(repository, Path(folder, "old"), OLD)
        new = backup(repository, Path(folder, "new"), NEW, run="run-2")
    repository.forget(old, "retention")
    return {info.key: store.get(info.key) for info in store.list()}, new


def prepared():
    """A store with a point that is kept and one that is forgotten; the second has packs for itself."""
    objects, new = template()
    store = MemoryStore()
    for key, body in objects.items():
        store.put_if_absent(key, body)
    return store, new


def assert_whole(store, expected):
    """Every point that is kept restores; those that are known, to what was saved."""
    repository = opened(store)
    for each in repository.points():
        assert repository.verify(each).sound
        found = contents(repository, each)
        assert found == expected.get(each.session, found)
    assert repository.check_objects() == []


def requests_of(folder, act):
    store, _ = prepared()
    faulty = FaultyStore(store)
    act(faulty, folder)
    return len(faulty.requests)


def collect(store, _folder=None, dead_after=NEVER, repack_below=0.0):
    return opened(store).collect(dead_after=dead_after, repack_below=repack_below)


REPACK = partial(collect, repack_below=0.9)
ways = pytest.mark.parametrize("collect", [collect, REPACK], ids=["delete", "repack"])


def assert_done(store, collect):
    """Nothing is left to do."""
    left = opened(store).unneeded(repack_below=collect.keywords["repack_below"] if collect is REPACK else 0.0)
    assert (left.size, left.repacked) == (0, 0)


def write(store, folder):
    """Save what the forgotten point holds, from its condemned chunks where that is allowed."""
    return backup(opened(store), folder / "spool", OLD, run="run-3")


@ways
@pytest.mark.parametrize("fault", [Fault.KILLED_AFTER, Fault.LOST])
def test_a_collection_that_ends_at_any_request_is_carried_on(tmp_path, fault, collect):
    for number in range(1, requests_of(tmp_path / "count", collect) + 1):
        store, new = prepared()

        faulty = FaultyStore(store, at(number, fault))
        with suppress(Killed, TemporaryError):  # a pack that is rewritten is put again
            collect(faulty)
        assert len(faulty.requests) >= number

        assert_whole(store, {new.session: NEW})
        # Who died while it rewrote packs is waited for, like a writer.
        collect(store, dead_after=ALWAYS if collect is REPACK else NEVER)
        assert_whole(store, {new.session: NEW})
        assert_done(store, collect)
        assert [info.key for info in store.list("gc/") if info.key.endswith("condemned")]


@ways
def test_a_backup_after_a_collector_died_at_any_request_is_whole(tmp_path, collect):
    for number in range(1, requests_of(tmp_path / "count", collect) + 1):
        store, new = prepared()
        with pytest.raises(Killed):
            collect(FaultyStore(store, at(number, Fault.KILLED_AFTER)))

        third = write(store, tmp_path / str(number))

        collect(store)
        assert_whole(store, {new.session: NEW, third.session: OLD})


class Meeting:
    """Lets something happen before request *number* of a process."""

    def __init__(self, number, happen):
        self.number, self.happen, self.result = number, happen, None

    def __call__(self, request):
        if request.number == self.number:
            self.result = self.happen()


@ways
def test_a_backup_between_any_two_requests_of_a_collection_is_whole(tmp_path, collect):
    for number in range(1, requests_of(tmp_path / "count", collect) + 1):
        store, new = prepared()
        met = Meeting(number, partial(write, store, tmp_path / str(number)))

        collect(FaultyStore(store, met))

        assert_whole(store, {new.session: NEW, met.result.session: OLD})
        collect(store)
        assert_whole(store, {new.session: NEW, met.result.session: OLD})


@ways
def test_another_collection_between_any_two_requests_of_one_harms_nothing(tmp_path, collect):
    for number in range(1, requests_of(tmp_path / "count", collect) + 1):
        store, new = prepared()

        collect(FaultyStore(store, Meeting(number, partial(collect, store))))

        assert_whole(store, {new.session: NEW})
        collect(store)
        assert_done(store, collect)


@ways
@pytest.mark.parametrize("dead_after", [NEVER, ALWAYS])
def test_a_collection_between_any_two_requests_of_a_backup_harms_nothing(tmp_path, dead_after, collect):
    for number in range(1, requests_of(tmp_path / "count", write) + 1):
        store, new = prepared()
        expected = {new.session: NEW}

        met = Meeting(number, partial(collect, store, dead_after=dead_after))

        try:
            third = write(FaultyStore(store, met), tmp_path / str(number))
            expected[third.session] = OLD
        except ConflictError:  # it was taken for dead, and knows it
            assert dead_after is ALWAYS

        assert_whole(store, expected)
        assert expected.keys() == {each.session for each in opened(store).points()}
        collect(store)
        assert_whole(store, expected)


@ways
@pytest.mark.parametrize("dead_after", [NEVER, ALWAYS])
def test_a_backup_that_dies_at_any_request_continues_after_a_collection_or_begins_anew(
    tmp_path, dead_after, collect
):
    for number in range(1, requests_of(tmp_path / "count", write) + 1):
        store, new = prepared()
        with pytest.raises(Killed):
            write(FaultyStore(store, at(number, Fault.KILLED_AFTER)), tmp_path / str(number))

        collect(store, None, dead_after)
        try:
            third = write(store, tmp_path / str(number))
        except ConflictError:
            third = write(store, tmp_path / str(number))

        assert_whole(store, {new.session: NEW, third.session: OLD})
        collect(store)
        assert_whole(store, {new.session: NEW, third.session: OLD})
        assert_done(store, collect)


class Shuffled(FaultyStore):
    """Holds requests up, each for a moment drawn with *seed*, so that threads overtake one another."""

    def __init__(self, store, seed):
        super().__init__(store)
        self._random = random.Random(seed)
        self._drawing = threading.Lock()

    def _begin(self, verb, key):
        with self._drawing:
            pause = self._random.choice([0, 0, 0, 0.0005, 0.002])
        threading.Event().wait(pause)
        return super()._begin(verb, key)


class Together:
    """What the threads of the next test do, and what must be found in the end."""

    def __init__(self, store, folder, seed):
        self.store, self.folder, self.seed = store, folder, seed
        self.saved = {}
        self.failures = []

    def write(self, vm):
        draw = random.Random(f"{self.seed}{vm}")
        for number in range(4):
            data = draw.choice([OLD, NEW])["data"][: draw.randint(1, 18) * CHUNK]
            with opened(self.store).begin(vm=vm, run=f"{number}", spool=self.folder / vm) as session:
                self.saved[session.id] = {"root": SHARED, "data": data}
                save(session, self.saved[session.id])
                session.upload()
                session.seal(point(session.recorded(), vm))

    def collect(self):
        for _ in range(4):
            opened(self.store).collect(repack_below=0.9)

    def forget(self):
        for _ in range(6):
            for vm in ("db1", "app1", "web1"):
                for each in opened(self.store).points(vm)[:-1]:
                    opened(self.store).forget(each, "retention")

    def restore(self):
        for _ in range(6):
            repository = opened(self.store)
            for each in repository.points():
                with suppress(NotFoundError), repository.reading(each):  # it may be forgotten by now
                    assert contents(repository, each) == self.saved[each.session]

    def run(self, *jobs):
        threads = [threading.Thread(target=self.note, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def note(self, work, *arguments):
        try:
            work(*arguments)
        except BaseException as error:
            self.failures.append(error)
            raise


@pytest.mark.parametrize("seed", range(6))
def test_writers_collectors_readers_and_retention_work_at_once(tmp_path, seed):
    memory, new = prepared()
    all_of = Together(Shuffled(memory, seed), tmp_path, seed)
    all_of.saved[new.session] = NEW

    all_of.run(
        (all_of.write, "app1"), (all_of.write, "web1"), (all_of.collect,), (all_of.collect,),
        (all_of.forget,), (all_of.restore,),
    )  # fmt: skip

    assert all_of.failures == []
    collect(memory)
    assert_whole(memory, all_of.saved)
    assert opened(memory).unneeded().size == 0
