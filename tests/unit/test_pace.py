"""Bytes go out no faster than they may, whoever sends them."""

import io
import threading
from itertools import pairwise

import pytest

from vmkeep.stores import pace as module
from vmkeep.stores.directory import DirectoryStore
from vmkeep.stores.pace import Pace, PacedFile, shared_pace
from vmkeep.units import KiB

RATE = 100 * KiB


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_so_many_bytes_a_second_go_and_no_more(clock):
    pace = Pace(RATE)
    begins = []
    for _ in range(100):
        pace.take(RATE // 10)
        begins.append(clock.now)

    assert [after - before for before, after in pairwise(begins)] == pytest.approx([0.1] * 99)


def test_time_in_which_nobody_sent_is_not_made_up_for(clock):
    pace = Pace(RATE)
    pace.take(RATE)
    clock.now += 100
    begin = clock.now
    pace.take(RATE)
    pace.take(RATE)

    assert clock.now - begin == pytest.approx(1)


def test_threads_share_it(monkeypatch):
    slept = []
    clock = Clock()
    monkeypatch.setattr(clock, "sleep", slept.append)
    monkeypatch.setattr(module, "time", clock)
    pace = Pace(RATE)
    threads = [threading.Thread(target=pace.take, args=(RATE,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(slept) == pytest.approx(
        [1, 2, 3, 4]
    )  # the clock stands still: each waits behind the others


def test_all_stores_of_a_process_share_it():
    assert shared_pace(RATE) is shared_pace(RATE)


@pytest.mark.parametrize("asked", [-1, 1000, 300 * KiB])
def test_a_file_is_the_same_and_takes_its_time(clock, asked):
    content = bytes(range(256)) * 1200
    begin = clock.now
    file = PacedFile(io.BytesIO(content), Pace(RATE), sending=True)

    parts = list(iter(lambda: file.read(asked), b""))
    assert b"".join(parts) == content
    assert clock.now - begin == pytest.approx(len(content) / RATE, abs=64 * KiB / RATE)


def test_a_file_is_read_at_full_speed_for_its_checksum_and_sent_again_from_its_begin(clock):
    content = bytes(RATE)
    file = PacedFile(io.BytesIO(content), Pace(RATE), sending=False)
    begin = clock.now
    assert file.read() == content
    assert (clock.now, file.tell()) == (begin, len(content))
    file.seek(0)
    file.signal_transferring()
    assert file.read() == content
    between = clock.now
    file.signal_not_transferring()
    file.seek(0)
    assert file.read(10) == content[:10]

    assert between > begin
    assert clock.now == between


def test_a_directory_is_written_no_faster_than_that(tmp_path, clock):
    begin = clock.now
    store = DirectoryStore(tmp_path, pace=Pace(RATE))
    for key in ("a", "b"):
        assert store.put_if_absent(key, bytes(3 * RATE))

    assert clock.now - begin == pytest.approx(6, abs=64 * KiB / RATE)
    assert store.get("b") == bytes(3 * RATE)
