"""Copies of recovery points in another repository."""

import contextlib
import dataclasses
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.errors import IntegrityError
from vmkeep.repository import Repository
from vmkeep.repository.copy import copy_point, differences, missing
from vmkeep.stores.memory import MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed, at
from vmkeep.testing.repositories import CHUNK, KEY, LEAF, backup, contents, small_repository

DISK = bytes(range(256)) * (CHUNK // 256) * 3 + bytes(CHUNK * LEAF) + b"end" * 999 + bytes(CHUNK - 2997)
"""Data, a leaf of holes, data."""


@pytest.fixture
def source():
    return small_repository(MemoryStore())


@pytest.fixture
def target():
    return small_repository(MemoryStore())


def changed(disk, at, text=b"new"):
    return disk[:at] + text + disk[at + len(text) :]


def test_a_copy_holds_what_its_original_holds(source, target, tmp_path):
    original = backup(source, tmp_path / "a", {"root": DISK}, {"dump": b"rows" * 5000})

    copy = copy_point(original, source, target, run="copy", spool=tmp_path / "b")

    assert contents(target, copy) == {"root": DISK, "dump": b"rows" * 5000}
    assert copy.copy_of == original.session
    same = {"copy_of": "", "session": "", "run": "", "components": {}, "parent": None}
    assert dataclasses.replace(copy, **same) == dataclasses.replace(original, **same)


def test_names_of_chunks_tell_nothing_across_repositories(source, target, tmp_path):
    original = backup(source, tmp_path / "a", {"root": DISK})

    copy = copy_point(original, source, target, run="copy", spool=tmp_path / "b")

    ours, theirs = (set(p.components["filesystems.root"].disks["root"].leaves) for p in (original, copy))
    assert min(len(ours), len(theirs)) > 1
    assert ours & theirs <= {bytes(32)}


def test_of_a_second_point_only_what_differs_is_read(source, target, tmp_path):
    first = backup(source, tmp_path / "a", {"root": DISK})
    copy_point(first, source, target, run="copy", spool=tmp_path / "b")
    disk = changed(DISK, CHUNK + 7)
    second = backup(source, tmp_path / "a", {"root": disk}, run="run-2")
    read = []

    copy = copy_point(second, source, target, run="copy", spool=tmp_path / "b", progress=read.append)

    assert contents(target, copy) == {"root": disk}
    assert sum(read) == CHUNK


def test_copies_stay_in_the_order_of_their_originals(source, target, tmp_path):
    points = [backup(source, tmp_path / "a", {"root": changed(DISK, n)}, run=f"r{n}") for n in range(3)]

    for point in (points[2], points[0], points[1]):
        copy_point(point, source, target, run="copy", spool=tmp_path / "b")

    assert [copy.copy_of for copy in target.points("db1")] == [point.session for point in points]


def test_what_is_copied_is_not_missing(source, target, tmp_path):
    first = backup(source, tmp_path / "a", {"root": DISK})
    second = backup(source, tmp_path / "a", {"root": changed(DISK, 9)}, run="run-2")
    copy_point(first, source, target, run="copy", spool=tmp_path / "b")

    assert missing(source, target, "db1") == [second]


def test_a_copy_of_a_copy_is_known_as_the_same(source, target, tmp_path):
    original = backup(source, tmp_path / "a", {"root": DISK})
    copy = copy_point(original, source, target, run="copy", spool=tmp_path / "b")
    third = small_repository(MemoryStore())

    again = copy_point(copy, target, third, run="copy", spool=tmp_path / "c")

    assert again.copy_of == original.session
    assert missing(source, third, "db1") == []


def test_damage_is_never_copied(source, target, tmp_path):
    original = backup(source, tmp_path / "a", {"root": DISK})
    for info in [*source.store.list("packs/")]:
        data = bytearray(source.store.get(info.key))
        data[100] ^= 1
        source.store.delete(info.key)
        source.store.put_if_absent(info.key, bytes(data))

    with pytest.raises(IntegrityError):
        copy_point(original, source, again(source), run="copy", spool=tmp_path / "b")
    with pytest.raises(IntegrityError):
        copy_point(original, again(source), target, run="copy", spool=tmp_path / "c")
    assert target.points() == []


def again(repository):
    """Return the repository as another process sees it."""
    return Repository.open(repository.store, KEY)


def test_a_copy_that_is_killed_at_any_request_goes_on_where_it_was(source, tmp_path):
    original = backup(source, tmp_path / "a", {"root": DISK, "data": DISK[::-1]})
    for number in count(1):
        store = small_repository(MemoryStore()).store
        spool = tmp_path / str(number)
        with contextlib.suppress(Killed):
            faulty = Repository.open(FaultyStore(store, at(number, Fault.KILLED)), KEY)
            copy_point(original, source, faulty, run="copy", spool=spool)
            break
        copy_point(original, again(source), Repository.open(store, KEY), run="copy", spool=spool)
        (copy,) = Repository.open(store, KEY).points()
        assert contents(Repository.open(store, KEY), copy) == contents(source, original)
        assert [*store.list("open/")] == []
    assert number > 10


@given(
    old=st.lists(st.sampled_from(b"\0ab"), min_size=1, max_size=3 * LEAF),
    new=st.lists(st.sampled_from(b"\0ab"), min_size=1, max_size=3 * LEAF),
)
def test_all_that_differs_is_found(tmp_path_factory, old, new):
    source = small_repository(MemoryStore())
    disks = [b"".join(bytes([each]) * CHUNK for each in disk) for disk in (old, new)]
    spool = tmp_path_factory.mktemp("spool")
    refs = [
        backup(source, spool / "a", {"root": disk}, run=f"r{number}")
        .components["filesystems.root"]
        .disks["root"]
        for number, disk in enumerate(disks)
    ]

    found = {each.start // CHUNK for each in differences(source.trees, *refs)}

    common = zip(old, new, strict=False)
    assert found == {number for number, (before, after) in enumerate(common) if before != after}
