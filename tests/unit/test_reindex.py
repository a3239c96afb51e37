"""Indexes that are lost are made again from the packs, and collections go on."""

import random
from itertools import count

import pytest

from vmkeep.errors import IntegrityError
from vmkeep.repository import Repository, layout
from vmkeep.repository.reindex import reindex
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed, at, flip
from vmkeep.testing.repositories import CHUNK, KEY, backup, contents, small_repository

DISKS = [{"root": random.Random(seed).randbytes(20 * CHUNK)} for seed in range(3)]


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def points(store, tmp_path):
    repository = small_repository(store)
    return [backup(repository, tmp_path / "s", disk, run=f"r{number}") for number, disk in enumerate(DISKS)]


def opened(store):
    return Repository.open(store, KEY)


def lose(store, point, how):
    key = layout.index(point.session)
    if how == "missing":
        store.delete(key)
    else:
        store._objects[key] = flip(store._objects[key], 70)


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_lost_index_is_made_again_and_collections_go_on(store, points, how):
    for point in points[:2]:
        lose(store, point, how)
    with pytest.raises(IntegrityError, match="'vmkeep repair' makes them again"):
        opened(store).collect()
    told = [one for one in opened(store).scrub().problems if "'vmkeep repair' makes it again" in one]
    assert [point.session in one for point, one in zip(points, told, strict=False)] == [True, True]

    assert reindex(opened(store)) == sorted(point.session for point in points[:2])

    assert reindex(opened(store)) == []
    assert opened(store).scrub().sound
    assert [contents(opened(store), point) for point in points] == DISKS
    opened(store).forget(points[0], "test")
    assert opened(store).collect().packs
    assert [contents(opened(store), point) for point in points[1:]] == DISKS[1:]
    assert opened(store).unneeded().size == 0


def test_one_that_is_killed_at_any_request_makes_nothing_worse(store, points):
    lose(store, points[1], "damaged")
    before = dict(store._objects)

    for number in count(1):
        store._objects = dict(before)
        try:
            reindex(opened(FaultyStore(store, at(number, Fault.KILLED))))
        except Killed:
            assert [contents(opened(store), point) for point in points] == DISKS
            reindex(opened(store))
            assert opened(store).collect().packs == 0
            assert [contents(opened(store), point) for point in points] == DISKS
        else:
            break

    assert number > 5
