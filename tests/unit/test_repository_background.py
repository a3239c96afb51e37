"""Packs go to the store while more is read; what goes wrong there harms neither the reading nor the point."""

import random
import threading

import pytest

from vmkeep.errors import ConflictError, IntegrityError, TemporaryError
from vmkeep.repository import Repository
from vmkeep.repository.decision import Decision, decide
from vmkeep.repository.pack import PackWriter
from vmkeep.repository.parallel import THREADS
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed, on
from vmkeep.testing.repositories import CHUNK, KEY, BytesDisk, contents, point, save, small_repository

PACK = 64 * 1024
CONTENT = random.Random(1).randbytes(200 * CHUNK)
PATIENCE = 30


class Gate(FaultyStore):
    """A store that keeps those who put packs waiting until it is opened."""

    def __init__(self, store, *args):
        super().__init__(store, *args)
        self.opened, self.reached = threading.Event(), threading.Event()
        self.waiting = self.most = 0
        self._count = threading.Lock()

    def put_if_absent(self, key, body):
        if not key.startswith("packs/"):
            return super().put_if_absent(key, body)
        with self._count:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        self.reached.set()
        assert self.opened.wait(PATIENCE)
        try:
            return super().put_if_absent(key, body)
        finally:
            with self._count:
                self.waiting -= 1


class Telling(FaultyStore):
    """A store that tells when a pack came."""

    def __init__(self, store, came, *args):
        super().__init__(store, *args)
        self.came = came

    def put_if_absent(self, key, body):
        done = super().put_if_absent(key, body)
        if key.startswith("packs/"):
            self.came.set()
        return done


@pytest.fixture
def memory():
    store = MemoryStore()
    small_repository(store)
    return store


def begin(store, tmp_path, **options):
    return Repository.open(store, KEY).begin(vm="db1", run="run-1", spool=tmp_path / "spool", **options)


def packs(store):
    return {info.key for info in store.list("packs/")}


def sealed(session, store):
    session.upload()
    return contents(Repository.open(store, KEY), session.seal(point(session.recorded())))


def test_packs_are_put_while_more_is_read(memory, tmp_path):
    came = threading.Event()
    disk = BytesDisk(CONTENT)
    read_into = disk.read_into

    def watching(offset, buffer):
        if offset >= 100 * CHUNK:
            assert came.wait(PATIENCE)
        read_into(offset, buffer)

    disk.read_into = watching

    with begin(Telling(memory, came), tmp_path) as session:
        session.save_disk(disk)
        assert packs(memory)


def test_few_packs_are_on_their_way_at_once_and_a_slow_store_does_not_slow_the_reading(memory, tmp_path):
    gate = Gate(memory)
    with begin(gate, tmp_path) as session:
        save(session, {"root": CONTENT})
        assert gate.reached.wait(PATIENCE)
        assert gate.most <= 2
        assert not packs(memory)
        gate.opened.set()

        assert sealed(session, memory) == {"root": CONTENT}


def test_the_reading_goes_on_while_a_full_pack_waits_for_the_disk_and_no_farther(
    memory, tmp_path, monkeypatch
):
    written, far = threading.Event(), threading.Event()
    finish, readers, waiters, lengths = PackWriter.finish, set(), set(), []

    def slow(writer):
        waiters.add(threading.current_thread())
        assert written.wait(PATIENCE)
        return finish(writer)

    disk = BytesDisk(CONTENT)
    read_into = disk.read_into

    def watching(offset, buffer):
        readers.add(threading.current_thread())
        read_into(offset, buffer)
        lengths.append(len(buffer))
        if waiters and sum(lengths) >= 1.5 * PACK:
            far.set()

    disk.read_into = watching
    monkeypatch.setattr(PackWriter, "finish", slow)
    with begin(memory, tmp_path) as session:
        saving = threading.Thread(target=session.save_disk, args=(disk,))
        saving.start()
        try:
            went_on = far.wait(PATIENCE)
            saving.join(0.2)
            waited, had_read, own_thread = saving.is_alive(), sum(lengths), not readers & waiters
        finally:
            written.set()
            saving.join(PATIENCE)
        assert went_on
        assert waited
        assert had_read <= 2 * PACK + THREADS * CHUNK
        assert own_thread
        save(session, {"root": CONTENT})

        assert sealed(session, memory) == {"root": CONTENT}


@pytest.mark.parametrize("fault", [Fault.AWAY, Fault.LOST, Fault.FULL])
def test_an_error_in_the_background_is_healed_by_the_upload(memory, tmp_path, fault):
    with begin(FaultyStore(memory, on("put", "packs/", fault, times=3)), tmp_path) as session:
        save(session, {"root": CONTENT})

        assert sealed(session, memory) == {"root": CONTENT}


def test_a_store_that_is_away_all_the_time_is_told_by_the_upload_and_not_by_the_reading(memory, tmp_path):
    with begin(FaultyStore(memory, on("put", "packs/", Fault.AWAY, times=10**6)), tmp_path) as session:
        save(session, {"root": CONTENT})

        with pytest.raises(TemporaryError, match="does not answer"):
            session.upload()
        assert not session.uploaded("filesystems.root")


def test_a_store_that_comes_back_is_used_again_without_being_asked(memory, tmp_path):
    away, came = True, threading.Event()

    def fault(request):
        return Fault.AWAY if away and request.key.startswith("packs/") else None

    with begin(Telling(memory, came, fault), tmp_path) as session:
        save(session, {"root": CONTENT[: 100 * CHUNK]})
        assert not packs(memory)
        away = False
        session.save_disk(BytesDisk(CONTENT))

        assert came.wait(PATIENCE)


def test_the_reading_fails_when_the_store_is_away_and_the_spool_is_at_its_limit(memory, tmp_path):
    faulty = FaultyStore(memory, on("put", "packs/", Fault.AWAY, times=10**6))
    with begin(faulty, tmp_path, spool_limit=3 * PACK) as session:
        with pytest.raises(TemporaryError, match="does not answer"):
            session.save_disk(BytesDisk(CONTENT))
        kept = sum(file.stat().st_size for file in (tmp_path / "spool/packs").glob("*.pack"))

    assert 2 * PACK < kept <= 6 * PACK


def test_the_reading_goes_on_from_there_once_the_store_is_back(memory, tmp_path):
    faulty = FaultyStore(memory, on("put", "packs/", Fault.AWAY, times=50))
    source = BytesDisk(CONTENT)
    with begin(faulty, tmp_path, spool_limit=3 * PACK) as session, pytest.raises(TemporaryError):
        session.save_disk(source)
    with begin(memory, tmp_path, spool_limit=3 * PACK) as session:
        assert session.resumed
        _, stats = session.save_disk(source)
        assert stats.new < len(CONTENT) - 2 * PACK
        save(session, {"root": CONTENT})

        assert sealed(session, memory) == {"root": CONTENT}


@pytest.mark.parametrize("fault", [Fault.KILLED, Fault.KILLED_AFTER])
@pytest.mark.parametrize("number", [1, 3, 7])
def test_a_process_that_ends_in_a_background_upload_is_continued(memory, tmp_path, fault, number):
    puts = 0

    def choose(request):
        nonlocal puts
        puts += request.verb == "put" and request.key.startswith("packs/")
        return fault if puts == number else None

    with begin(FaultyStore(memory, choose), tmp_path) as session:
        save(session, {"root": CONTENT})
        with pytest.raises(Killed):
            session.upload()
    before = packs(memory)

    again = FaultyStore(memory)
    with begin(again, tmp_path) as session:
        assert session.resumed
        assert sealed(session, memory) == {"root": CONTENT}
    put = [request.key for request in again.requests if request.verb == "put"]
    assert len(before & set(put)) <= 1  # only one whose answer nobody got


def test_close_waits_for_what_is_on_its_way_and_begins_no_more(memory, tmp_path):
    gate = Gate(memory)
    session = begin(gate, tmp_path)
    save(session, {"root": CONTENT})
    assert gate.reached.wait(PATIENCE)
    closing = threading.Thread(target=session.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()

    gate.opened.set()
    closing.join(PATIENCE)

    assert 1 <= len(packs(memory)) <= 2
    with begin(memory, tmp_path) as again:
        assert sealed(again, memory) == {"root": CONTENT}


def test_a_fenced_session_with_uploads_under_way_never_seals(memory, tmp_path):
    with begin(memory, tmp_path) as session:
        save(session, {"root": CONTENT})
        keys = Repository.open(memory, KEY).keys
        decide(memory, keys, f"points/db1/{session.id}", Decision("collector", None, "no sign of life"))

        with pytest.raises(ConflictError, match="declared dead"):
            sealed(session, memory)
    assert not (tmp_path / "spool").exists()
    assert Repository.open(memory, KEY).points() == []


def test_other_bytes_under_the_name_of_a_pack_are_told_by_the_upload(memory, tmp_path):
    gate = Gate(memory)
    with begin(gate, tmp_path) as session:
        save(session, {"root": CONTENT})
        assert gate.reached.wait(PATIENCE)
        name = min((tmp_path / "spool/packs").glob("*.pack")).stem
        memory.put_if_absent(f"packs/{name[:2]}/{name}", b"other")
        gate.opened.set()

        with pytest.raises(IntegrityError, match="holds other bytes at packs/"):
            session.upload()


def test_what_was_saved_after_a_seal_whose_answer_was_lost_is_not_said_to_be_in_the_point(memory, tmp_path):
    with begin(FaultyStore(memory, on("put", "points/", Fault.LOST, times=1)), tmp_path) as session:
        save(session, {"root": CONTENT})
        session.upload()
        with pytest.raises(TemporaryError):
            session.seal(point(session.recorded()))
        save(session, {"data": CONTENT[:PACK]})
        session.upload()

        with pytest.raises(ConflictError, match=r"sealed before, with other components \(filesystems.root\)"):
            session.seal(point(session.recorded()))

    repository = Repository.open(memory, KEY)
    assert [contents(repository, each) for each in repository.points()] == [{"root": CONTENT}]
    with begin(memory, tmp_path) as again:
        assert not again.resumed
