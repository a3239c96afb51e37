"""A saved disk is read anywhere, by many, ahead of those who read on, and never wrong."""

import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmkeep.disks.nbd_device import NbdDevice
from vmkeep.disks.nbd_server import serving
from vmkeep.errors import IntegrityError, SourceError, TemporaryError
from vmkeep.repository import chunk_cache
from vmkeep.repository.read_disk import SavedDisk
from vmkeep.stores.memory import MemoryStore
from vmkeep.testing.disks import read
from vmkeep.testing.faults import Fault, FaultyStore
from vmkeep.testing.repositories import backup, small_format, small_repository

CHUNK = small_format().disk_chunk


def noise(length, seed=1):
    return random.Random(seed).randbytes(length)


class Place:
    """A repository with one saved disk, whose requests are counted and may fail."""

    def __init__(self, folder, content):
        self.gets = []
        self.fault = lambda _: None
        self.delay = 0.0
        self.content = content
        self.repository = small_repository(FaultyStore(MemoryStore(), self.pass_on))
        saved = backup(self.repository, folder / "spool", {"root": content})
        self.ref = saved.components["filesystems.root"].disks["root"]
        self.gets.clear()

    def pass_on(self, request):
        if request.verb == "get" and request.key.startswith("packs/"):
            self.gets.append(request.key)
            time.sleep(self.delay)
            return self.fault(request)
        return None

    def open(self, **how):
        return SavedDisk(self.ref, self.repository.trees, **how)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path, noise(40 * CHUNK) + bytes(20 * CHUNK) + noise(20 * CHUNK + 9, 2))


@settings(max_examples=30, deadline=None)
@given(holes=st.lists(st.booleans(), min_size=1, max_size=30), data=st.data())
def test_what_holds_data_in_every_range_is_told(holes, data, tmp_path_factory):
    content = b"".join(bytes(CHUNK) if hole else noise(CHUNK, n) for n, hole in enumerate(holes)) + b"end"
    place = Place(tmp_path_factory.mktemp("s"), content)
    start = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(1, len(content) - start))

    with place.open() as disk:
        told = list(disk.extents_within(start, length))
    expected = [
        (max(start, n * CHUNK), min(start + length, (n + 1) * CHUNK))
        for n in range(len(holes) + 1)
        if any(content[n * CHUNK : (n + 1) * CHUNK])
    ]
    parts = [
        (max(a, one.start), min(b, one.end))
        for one in told
        for a, b in expected
        if a < one.end and one.start < b
    ]
    assert parts == [(a, b) for a, b in expected if a < b]
    assert sum(one.length for one in told) == sum(b - a for a, b in parts)
    assert all(a.end < b.start for a, b in itertools.pairwise(told))


@pytest.fixture
def at_once(monkeypatch):
    """Let all that is fetched ahead be there before the next one reads, however busy this machine is."""
    pool = SimpleNamespace(submit=lambda work, *given: work(*given), shutdown=lambda **_: None)
    monkeypatch.setattr(chunk_cache, "ThreadPoolExecutor", lambda *_: pool)


@pytest.mark.usefixtures("at_once")
def test_whoever_reads_on_finds_the_next_chunks_there(place):
    with place.open() as disk:
        got = b"".join(read(disk, at, CHUNK // 2) for at in range(0, 40 * CHUNK, CHUNK // 2))

    assert got == place.content[: 40 * CHUNK]
    assert len(place.gets) < 35, "one request for each chunk, and for each list of chunks, would be 45"


@pytest.mark.usefixtures("at_once")
def test_whoever_jumps_about_fetches_nothing_in_vain(place):
    with place.open() as disk:
        for number in (30, 3, 22, 9, 70, 15):
            assert read(disk, number * CHUNK, 10) == place.content[number * CHUNK :][:10]
    leaves = 2
    assert len(place.gets) <= 6 + leaves * 6


@pytest.mark.usefixtures("at_once")
def test_several_who_read_on_at_different_places_are_all_helped(place):
    with place.open() as disk:
        for number in range(18):
            for start in (0, 20, 60):
                at = (start + number) * CHUNK
                assert read(disk, at, CHUNK) == place.content[at : at + CHUNK]
    assert len(place.gets) < 58, "one request for each chunk, and for each list of chunks, would be 62"


def test_many_who_want_the_same_chunk_cause_one_request(place):
    place.delay = 0.05
    with place.open() as disk, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: read(disk, 5 * CHUNK, CHUNK), range(16)))

    assert set(found) == {place.content[5 * CHUNK : 6 * CHUNK]}
    assert len(place.gets) == 2, "one for the list of chunks, one for the chunk"


def test_what_is_kept_stays_within_its_bound(place):
    with place.open(capacity=4 * CHUNK) as disk:
        assert read(disk, 0, disk.size) == place.content
        assert disk._cache._size <= 4 * CHUNK
        assert sum(map(len, disk._cache._kept.values())) == disk._cache._size


def test_holes_are_read_without_any_request(place):
    with place.open() as disk:
        read(disk, 45 * CHUNK, 10)  # the list of chunks
        before = len(place.gets)
        assert read(disk, 44 * CHUNK, 10 * CHUNK) == bytes(10 * CHUNK)
    assert len(place.gets) <= before + 2


def test_a_store_that_is_away_for_a_moment_is_waited_for(place):
    faults = iter([Fault.AWAY] * 2)
    place.fault = lambda _: next(faults, None)

    with place.open(patience_s=60) as disk:
        assert read(disk, 0, 3 * CHUNK) == place.content[: 3 * CHUNK]


def test_without_patience_a_store_that_is_away_is_an_error_and_later_reads_work(place):
    with place.open() as disk:
        place.fault = lambda _: Fault.AWAY
        with pytest.raises(TemporaryError):
            read(disk, 0, 10)
        place.fault = lambda _: None
        assert read(disk, 0, 10) == place.content[:10]


def test_closing_ends_whoever_waits_for_a_store(place):
    place.fault = lambda _: Fault.AWAY
    disk = place.open(patience_s=60)
    threading.Timer(0.2, disk.close).start()
    began = time.monotonic()

    with pytest.raises(TemporaryError):
        read(disk, 0, 10)
    assert time.monotonic() - began < 50


def test_damage_that_was_fetched_ahead_is_an_error_for_whoever_needs_it(place):
    place.fault = lambda _: Fault.FLIPPED
    with place.open() as disk:
        with pytest.raises(IntegrityError, match="a saved disk cannot be read at"):
            read(disk, 0, 3 * CHUNK)
        place.fault = lambda _: None
        assert read(disk, 0, 3 * CHUNK) == place.content[: 3 * CHUNK]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_many_read_at_once_is_right_or_an_error(seed, tmp_path_factory):
    pick = random.Random(seed)
    place = Place(tmp_path_factory.mktemp("s"), noise(20 * CHUNK, seed))
    faults = [pick.choice([None, None, None, Fault.AWAY, Fault.CUT, Fault.FLIPPED]) for _ in range(100)]
    place.fault = lambda request: faults[request.number % 100]
    ranges = [(at, pick.randrange(20 * CHUNK - at)) for at in (pick.randrange(20 * CHUNK) for _ in range(40))]

    def look(where):
        at, length = where
        try:
            return read(disk, at, length) == place.content[at : at + length]
        except (IntegrityError, TemporaryError):
            return True

    with place.open(capacity=5 * CHUNK) as disk, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, ranges))


def test_a_read_outside_of_the_disk_is_an_error(place):
    with place.open() as disk, pytest.raises(SourceError):
        read(disk, disk.size - 5, 10)


def test_a_saved_disk_is_served_over_nbd(place, tmp_path):
    with (
        place.open() as disk,
        serving({"root": disk}, tmp_path / "s"),
        NbdDevice(tmp_path / "s", "root") as device,
    ):
        assert read(device, 0, device.size) == place.content
        assert list(device.extents()) == list(disk.extents())
