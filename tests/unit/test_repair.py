"""Repair: what is damaged is stored again from a copy, and nothing is made worse."""

import random
from itertools import count

import pytest

from vmkeep.errors import IntegrityError
from vmkeep.repository import Repository
from vmkeep.repository.copy import copy_point
from vmkeep.repository.repair import repair
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed, at, flip
from vmkeep.testing.repositories import CHUNK, KEY, backup, contents, small_repository

DISK = random.Random(1).randbytes(40 * CHUNK)
DUMP = random.Random(2).randbytes(9 * CHUNK)


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def copy(store, tmp_path):
    """Two recovery points, and a copy of each elsewhere."""
    repository, copy = small_repository(store), small_repository(MemoryStore())
    for number, disk in enumerate((DISK, DISK[:CHUNK] + b"new" * 300 + DISK[CHUNK + 900 :])):
        saved = backup(repository, tmp_path / "s", {"root": disk}, {"dump": DUMP}, run=f"r{number}")
        copy_point(saved, repository, copy, run="copy", spool=tmp_path / "c")
    return copy


def opened(store):
    return Repository.open(store, KEY)


def damage(store, *, every):
    """Flip a bit of every pack, or of one; return how many."""
    keys = [info.key for info in store.list("packs/")][: None if every else 1]
    for key in keys:
        store._objects[key] = flip(store._objects[key], len(store._objects[key]) // 3)
    return len(keys)


def all_of(store):
    repository = opened(store)
    return [contents(repository, point) for point in repository.points()]


@pytest.mark.parametrize("every", [True, False])
def test_all_points_are_whole_again(store, copy, every):
    expected = all_of(store)
    damage(store, every=every)
    found = opened(store).scrub()

    repaired = repair(opened(store), copy, found.damages, found.broken)

    assert found.damages
    assert repaired.left == ()
    assert all_of(store) == expected
    assert opened(store).verify(opened(store).points()[0]).sound


def test_a_pack_that_is_missing_is_made_up_for(store, copy):
    expected = all_of(store)
    store.delete(next(iter(store.list("packs/"))).key)
    found = opened(store).scrub()

    repair(opened(store), copy, found.damages, found.broken)

    assert all_of(store) == expected


def test_only_what_is_damaged_is_stored_again(store, copy):
    damage(store, every=False)
    found = opened(store).scrub()
    before = {info.key for info in store.list("packs/")}

    repaired = repair(opened(store), copy, found.damages, found.broken)

    new = sum(info.size for info in store.list("packs/") if info.key not in before)
    assert before <= {info.key for info in store.list("packs/")}
    assert 0 < new < 3 * 64 * 1024
    assert repaired.size <= new


def test_what_is_broken_goes_with_the_next_collection(store, copy):
    expected = all_of(store)
    damage(store, every=False)
    found = opened(store).scrub()
    repair(opened(store), copy, found.damages, found.broken)

    opened(store).collect()

    there = {info.key.rpartition("/")[2] for info in store.list("packs/")}
    assert there.isdisjoint(name.hex() for name in found.broken)
    assert opened(store).scrub().sound
    assert all_of(store) == expected


def test_another_content_is_never_taken(store, tmp_path):
    repository = small_repository(store)
    saved = backup(repository, tmp_path / "s", {"root": DISK})
    other = small_repository(MemoryStore())
    copied = copy_point(saved, repository, other, run="copy", spool=tmp_path / "c")
    forged = small_repository(MemoryStore())
    with forged.begin(vm="db1", run="x", spool=tmp_path / "f") as session:
        ref, _ = session.save_disk(other.open_disk(copied.components["filesystems.root"].disks["root"]))
        changed, _ = session.save_disk(_Other(ref.size))
        component = type(copied.components["filesystems.root"])("filesystems.root", {"root": changed})
        session.record(component)
        session.upload()
        session.seal(type(copied)(**{**_fields(copied), "components": {"filesystems.root": component}}))
    damage(store, every=False)
    found = opened(store).scrub()
    before = objects(store)

    repaired = repair(opened(store), forged, found.damages, found.broken)

    assert repaired.components == ()
    assert "not what was saved" in repaired.left[0]
    assert objects(store) == before


class _Other:
    def __init__(self, size):
        from vmkeep.testing.repositories import BytesDisk  # noqa: PLC0415

        self._disk = BytesDisk(bytes([7]) * size)

    def __getattr__(self, name):
        return getattr(self._disk, name)


def _fields(point):
    return {name: getattr(point, name) for name in type(point).__slots__}


def objects(store):
    return {info.key for info in store.list() if info.key.startswith(("packs/", "index/", "points/"))}


def test_a_copy_that_is_damaged_too_helps_as_far_as_it_is_whole(store, copy):
    damage(store, every=True)
    damage(copy.store, every=True)
    found = opened(store).scrub()

    repaired = repair(opened(store), opened(copy.store), found.damages, found.broken)

    assert repaired.left
    with pytest.raises(IntegrityError):
        all_of(store)


def test_a_repair_that_is_killed_at_any_request_makes_nothing_worse(store, copy):
    expected = all_of(store)
    damage(store, every=False)
    for number in count(1):
        broken = MemoryStore()
        broken._objects = dict(store._objects)
        try:
            faulty = opened(FaultyStore(broken, at(number, Fault.KILLED)))
            found = faulty.scrub()
            repair(faulty, copy, found.damages, found.broken)
        except Killed:
            found = opened(broken).scrub()
            repair(opened(broken), copy, found.damages, found.broken)
            assert all_of(broken) == expected
        else:
            break
    assert number > 20
