"""The merged index of this machine: the same as one made in memory, and never trusted when it is damaged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.repository import Repository, merged
from vmkeep.repository.index import ENTRY, Index, PackInfo
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import FaultyStore
from vmkeep.testing.repositories import KEY, backup, contents, small_repository


def an_index(draw, packs, entries):
    infos = [PackInfo(draw.bytes(16), int(draw.integers(1, 1000))) for _ in range(packs)]
    rows = np.zeros(entries if packs else 0, ENTRY)
    rows["id"] = draw.integers(0, 256, (len(rows), 32), np.uint8)
    if len(rows):
        rows["pack"] = draw.integers(0, packs, len(rows))
        rows["offset"] = np.arange(len(rows))
    return Index.build(infos, rows)


@given(
    sizes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=4),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
)
def test_it_is_the_index_that_is_merged_in_memory(tmp_path_factory, sizes, seed, share):
    draw = np.random.default_rng(seed)
    parts = [an_index(draw, *size) for size in sizes]
    names = [pack.name for part in parts for pack in part.packs]
    dead = frozenset(name for name in names if draw.random() < share)
    mentioned = {f"index/{number}": part.packs for number, part in enumerate(parts)}
    path = tmp_path_factory.mktemp("merged") / "cache" / "merged"

    merged.write(path, parts, mentioned, dead)

    found = merged.read(path)
    expected = Index.merge(parts, without=dead)
    assert found is not None
    assert list(found.index.packs) == list(expected.packs)
    assert found.index.entries.tobytes() == expected.entries.tobytes()
    assert {key: list(packs) for key, packs in found.mentioned.items()} == {
        key: list(packs) for key, packs in mentioned.items()
    }
    assert found.dead == dead
    for row in expected.entries:
        assert found.index.locate(row["id"].tobytes()) == expected.locate(row["id"].tobytes())


@pytest.mark.parametrize("where", ["magic", "header", "table", "end"])
def test_a_damaged_file_is_as_none(tmp_path, where):
    part = an_index(np.random.default_rng(1), 3, 20)
    merged.write(tmp_path / "merged", [part], {"index/a": part.packs}, frozenset())
    data = bytearray((tmp_path / "merged").read_bytes())
    if where == "end":
        del data[-1]
    else:
        data[{"magic": 0, "header": 60, "table": data.index(part.packs[0].name)}[where]] ^= 1
    (tmp_path / "merged").write_bytes(data)

    assert merged.read(tmp_path / "merged") is None


def test_only_its_owner_may_read_it(tmp_path):
    merged.write(tmp_path / "cache" / "merged", [], {}, frozenset())

    assert (tmp_path / "cache" / "merged").stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["merged"]


def opened(store, cache):
    counted = FaultyStore(store)
    return counted, Repository.open(counted, KEY, cache=cache)


def reads(counted):
    return [
        request.key
        for request in counted.requests
        if request.verb == "get" and request.key.startswith("index/")
    ]


def test_index_objects_are_read_once_by_this_machine(tmp_path):
    store = MemoryStore()
    repository = small_repository(store)
    first = backup(repository, tmp_path / "s", {"root": b"one" * 9000}, run="r1")
    counted, repository = opened(store, tmp_path / "cache")
    assert contents(repository, first) == {"root": b"one" * 9000}
    assert len(reads(counted)) == 1

    counted, repository = opened(store, tmp_path / "cache")
    assert contents(repository, first) == {"root": b"one" * 9000}
    assert reads(counted) == []

    second = backup(small_again(store), tmp_path / "s", {"root": b"two" * 9000}, run="r2")
    counted, repository = opened(store, tmp_path / "cache")
    assert contents(repository, second) == {"root": b"two" * 9000}
    assert contents(repository, first) == {"root": b"one" * 9000}
    assert [key.partition(".")[0] for key in reads(counted)] == [f"index/{second.session}"]


def small_again(store):
    return Repository.open(store, KEY)


def test_what_was_collected_meanwhile_is_not_counted_on(tmp_path):
    store = MemoryStore()
    repository = small_repository(store)
    first = backup(repository, tmp_path / "s", {"root": b"one" * 9000}, run="r1")
    opened(store, tmp_path / "cache")[1].committed.refresh()
    other = small_again(store)
    other.forget(first, "test")
    other.collect()

    _, writer = opened(store, tmp_path / "cache")
    again = backup(writer, tmp_path / "s2", {"root": b"one" * 9000}, run="r2")

    assert contents(small_again(store), again) == {"root": b"one" * 9000}


def test_what_a_killed_process_left_is_written_over(tmp_path):
    part = an_index(np.random.default_rng(1), 3, 20)
    (tmp_path / ".merged.new").write_bytes(b"half of one" * 10_000)

    merged.write(tmp_path / "merged", [part], {"index/a": part.packs}, frozenset())

    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    found = merged.read(tmp_path / "merged")
    assert found is not None
    assert found.index.entries.tobytes() == part.entries.tobytes()
