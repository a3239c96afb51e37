"""Clocks that jump and credentials that expire: work may be lost, never data."""

import contextlib
import random
import sys
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from vmkeep.errors import AccessError, ConflictError, VmkeepError
from vmkeep.operations import holds
from vmkeep.planning import retention
from vmkeep.repository import Repository
from vmkeep.repository.copy import copy_point
from vmkeep.repository.repair import repair
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, flip
from vmkeep.testing.repositories import CHUNK, KEY, backup, contents, point, save, small_repository

YEARS = timedelta(days=3650)
DISK = {"root": random.Random(1).randbytes(20 * CHUNK)}


class Clock:
    """The clock that all modules of the repository read; *ahead* of the right one."""

    ahead = timedelta()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()

    class Shifted(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + clock.ahead

    for name, module in list(sys.modules.items()):
        if name.startswith("vmkeep.repository") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Shifted)
    return clock


def opened(store):
    return Repository.open(store, KEY)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_clock_shows_every_kept_point_is_whole(clock, tmp_path, seed):
    draw = random.Random(seed)
    store = MemoryStore()
    small_repository(store)
    kept = {}
    for number in range(14):
        clock.ahead = draw.choice([-YEARS, -timedelta(days=1), timedelta(), timedelta(hours=2), YEARS])
        work = draw.choice(["backup", "backup", "forget", "collect", "scrub"])
        if work == "backup":
            disk = {"root": DISK["root"][: draw.randrange(20) * CHUNK] + draw.randbytes(3 * CHUNK)}
            kept[backup(opened(store), tmp_path / "s", disk, run=f"run-{number}").session] = disk
        elif work == "forget" and kept:
            session = draw.choice(sorted(kept))
            repository = opened(store)
            repository.forget(repository.point("db1", session), "test")
            del kept[session]
        elif work == "collect":
            opened(store).collect(repack_below=draw.choice([0.0, 0.9]))
        else:
            assert opened(store).scrub(share=0.5).sound

        repository = opened(store)
        assert {each.session: contents(repository, each) for each in repository.points()} == kept
    clock.ahead = timedelta()
    opened(store).collect()
    assert opened(store).unneeded().size == 0


def test_a_clock_that_jumps_ahead_costs_a_writer_its_session_and_nobody_any_data(clock, tmp_path):
    store = MemoryStore()
    saved = backup(small_repository(store), tmp_path / "a", DISK)
    with opened(store).begin(vm="db2", run="run-1", spool=tmp_path / "s") as session:
        save(session, DISK)
        session.upload()
        clock.ahead = YEARS
        opened(store).collect()
        clock.ahead = timedelta()
        with pytest.raises(ConflictError, match="was declared dead"):
            session.seal(point(session.recorded(), "db2"))

    assert [each.session for each in opened(store).points()] == [saved.session]
    assert contents(opened(store), saved) == DISK
    assert contents(opened(store), backup(opened(store), tmp_path / "s", DISK, vm="db2")) == DISK


@pytest.mark.parametrize("ahead", [YEARS, -YEARS])
def test_what_was_saved_last_is_the_newest_whatever_the_clock_showed(clock, tmp_path, ahead):
    store = MemoryStore()
    repository = small_repository(store)
    made = []
    for number, clock.ahead in enumerate([timedelta(), ahead, timedelta()]):
        made.append(backup(repository, tmp_path / "s", {"root": b"x" * number}, run=f"run-{number}").session)
        newest = repository.point("db1")
        assert newest.session == made[-1]
        verdicts = retention.decide(map(holds.candidate, repository.points()), retention.Policy(last=1))
        assert [one.point.session for one in verdicts if one.kept] == made[-1:]

    assert [one.session for one in repository.points()] == made


@pytest.mark.parametrize("behind", [timedelta(hours=2), YEARS])
def test_what_was_repaired_by_a_clock_that_is_behind_is_kept(clock, tmp_path, behind):
    store = MemoryStore()
    repository, copy = small_repository(store), small_repository(MemoryStore())
    saved = backup(repository, tmp_path / "s", DISK)
    copy_point(saved, repository, copy, run="copy", spool=tmp_path / "c")
    for info in store.list("packs/"):
        store._objects[info.key] = flip(store._objects[info.key], info.size // 3)
    found = opened(store).scrub()
    clock.ahead = -behind

    assert repair(opened(store), copy, found.damages, found.broken).components

    clock.ahead = timedelta()
    opened(store).collect()
    assert contents(opened(store), saved) == DISK
    assert opened(store).scrub().sound


def test_a_collector_whose_clock_is_behind_waits_and_deletes_nothing_that_is_needed(clock, tmp_path):
    store = MemoryStore()
    opened_first = small_repository(store)
    old = backup(opened_first, tmp_path / "a", {"root": b"old" * 9000})
    opened_first.forget(old, "test")
    with opened(store).begin(vm="db2", run="run-1", spool=tmp_path / "s") as session:
        save(session, DISK)
        session.upload()
        clock.ahead = -YEARS
        done = opened(store).collect()
        made = session.seal(point(session.recorded(), "db2"))

    assert [one.session for one in done.waits_for] == [session.id]
    assert contents(opened(store), made) == DISK
    clock.ahead = timedelta()
    opened(store).collect()
    assert contents(opened(store), made) == DISK
    assert opened(store).unneeded().size == 0


def expired_from(number):
    return lambda request: Fault.DENIED if request.number >= number else None


def every_request(prepare, work):
    """Let the credentials of *work* expire at each of its requests in turn; yield the stores."""
    for number in count(1):
        store = prepare(number)
        faulty = FaultyStore(store, expired_from(number))
        with contextlib.suppress(VmkeepError):
            work(faulty, number)
        yield number, store
        if len(faulty.requests) < number:
            return


def test_credentials_that_expire_at_any_request_of_a_backup_cost_no_data(tmp_path):
    saved = {}

    def prepare(number):
        store = MemoryStore()
        saved[number] = backup(small_repository(store), tmp_path / f"{number}a", DISK)
        return store

    new = {"root": DISK["root"][: 9 * CHUNK] + b"new" * 5000}
    for number, store in every_request(
        prepare, lambda faulty, n: backup(opened(faulty), tmp_path / f"{n}b", new, run="run-2")
    ):
        assert contents(opened(store), saved[number]) == DISK
        again = backup(opened(store), tmp_path / f"{number}b", new, run="run-2")
        assert contents(opened(store), again) == new
        assert opened(store).scrub().sound
    assert number > 15


def test_credentials_that_expire_at_any_request_of_a_collection_cost_no_data(tmp_path):
    kept = {}

    def prepare(number):
        store = MemoryStore()
        repository = small_repository(store)
        repository.forget(backup(repository, tmp_path / "a", {"root": b"old" * 9000}), "test")
        kept[number] = backup(repository, tmp_path / "a", DISK, run="run-2")
        return store

    for number, store in every_request(prepare, lambda faulty, _: opened(faulty).collect(repack_below=0.9)):
        assert contents(opened(store), kept[number]) == DISK
        opened(store).collect(now=datetime.now(UTC) + YEARS)
        assert contents(opened(store), kept[number]) == DISK
        assert opened(store).unneeded().size == 0
    assert number > 20


def test_credentials_that_expire_are_said_and_not_taken_for_damage(tmp_path):
    store = MemoryStore()
    saved = backup(small_repository(store), tmp_path / "s", DISK)
    repository = opened(
        FaultyStore(store, lambda one: Fault.DENIED if one.key.startswith("packs/") else None)
    )

    with pytest.raises(AccessError, match="expired"):
        contents(repository, saved)
    with pytest.raises(AccessError, match="expired"):
        repository.scrub()
