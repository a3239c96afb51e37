"""The parts of the repository on their own: inverses, orders and frozen bytes."""

import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmkeep.disks.device import Extent
from vmkeep.errors import IntegrityError
from vmkeep.repository import sealed
from vmkeep.repository.codec import RAW, ZSTD, compress, decompress
from vmkeep.repository.crypto import Keys
from vmkeep.repository.cutter import cut
from vmkeep.repository.disk_plan import allocated, changed
from vmkeep.repository.format import Format
from vmkeep.repository.index import ENTRY, Index, PackInfo
from vmkeep.repository.layout import is_session_id, new_session_id
from vmkeep.repository.pack import PackReader, PackWriter
from vmkeep.repository.parallel import in_order
from vmkeep.units import KiB, MiB

KEYS = Keys([bytes(32)], bytes(16))
FORMAT = Format(bytes(16))


@given(payload=st.binary(max_size=3000), size=st.integers(0, 4000))
def test_what_was_sealed_is_unsealed(payload, size):
    data = sealed.seal(KEYS, "point", "points/a", payload, size=size)

    assert sealed.unseal(KEYS, "point", "points/a", data) == payload
    assert len(data) >= size


@pytest.mark.parametrize(("kind", "key"), [("index", "points/a"), ("point", "points/b")])
def test_what_was_sealed_is_bound_to_its_kind_and_name(kind, key):
    data = sealed.seal(KEYS, "point", "points/a", b"payload")

    with pytest.raises(IntegrityError):
        sealed.unseal(KEYS, kind, key, data)


def test_the_same_payload_is_never_encrypted_alike():
    assert len({sealed.seal(KEYS, "point", "a", b"x")[8:] for _ in range(50)}) == 50


@given(data=st.one_of(st.binary(max_size=5000), st.just(b"abc" * 100_000)))
def test_what_was_compressed_is_decompressed(data):
    body, codec = compress(data)

    assert bytes(decompress(body, codec, len(data))) == data


def test_what_does_not_shrink_is_stored_as_it_is():
    data = random.Random(1).randbytes(MiB)

    assert compress(data) == (data, RAW)
    assert compress(b"text " * 100_000)[1] == ZSTD


def entries(ids, pack=0):
    found = np.zeros(len(ids), ENTRY)
    for number, chunk in enumerate(ids):
        found[number] = (np.frombuffer(chunk, np.uint8), pack, number, 10, 20)
    return found


ids = st.lists(
    st.binary(min_size=1, max_size=3).map(lambda b: b.ljust(8, b"\0").ljust(32, b[:1])), unique=True
)


@given(present=ids, absent=ids)
def test_an_index_finds_what_is_in_it_and_nothing_else(present, absent):
    index = Index.decode(Index.build((PackInfo(bytes(16), 99),), entries(present)).encode())

    for number, chunk in enumerate(present):
        location = index.locate(chunk)
        assert (location.offset, location.stored, location.raw, location.pack.size) == (number, 10, 20, 99)
    assert all(chunk not in index for chunk in set(absent) - set(present))


def test_ids_that_begin_alike_are_told_apart():
    alike = [b"12345678" + bytes([n]) * 24 for n in range(10)]
    index = Index.build((PackInfo(bytes(16), 9),), entries(alike[:9]))

    assert [index.locate(chunk).offset for chunk in alike[:9]] == list(range(9))
    assert alike[9] not in index


def test_a_merge_leaves_out_the_packs_it_is_told():
    first = Index.build((PackInfo(b"a" * 16, 1),), entries([b"1" * 32]))
    second = Index.build((PackInfo(b"b" * 16, 2),), entries([b"2" * 32]))

    merged = Index.merge([first, second], without=frozenset([b"a" * 16]))

    assert b"1" * 32 not in merged
    assert merged.locate(b"2" * 32).pack.name == b"b" * 16


def test_a_million_chunks_take_56_bytes_each():
    found = np.zeros(100_000, ENTRY)
    found["id"] = np.frombuffer(random.Random(1).randbytes(3_200_000), np.uint8).reshape(-1, 32)
    index = Index.build((PackInfo(bytes(16), 1),), found)

    assert index.entries.nbytes + index.prefixes.nbytes == 56 * 100_000


def test_a_pack_gives_back_its_chunks_and_its_entries(tmp_path):
    writer = PackWriter(KEYS.newest, tmp_path / "pack")
    chunks = [random.Random(n).randbytes(n * 100) for n in range(1, 6)]
    for chunk in chunks:
        writer.append(KEYS.newest.chunk_id(chunk), chunk, len(chunk), RAW)
    pack = writer.finish()

    data = (tmp_path / "pack").read_bytes()
    reader = PackReader(KEYS, pack.info)
    index = Index.build((pack.info,), reader.footer(data))

    assert len(data) == pack.info.size
    for chunk in chunks:
        place = index.locate(KEYS.newest.chunk_id(chunk))
        record = memoryview(data)[place.offset : place.offset + 48 + place.stored]
        assert bytes(reader.chunk(record, place)) == chunk
    with pytest.raises(IntegrityError):
        PackReader(KEYS, PackInfo(bytes(16), len(data))).footer(data)


CUT_POINTS = [1215668, 704618, 3023302, 477063, 1337984, 2182647]
STREAM = random.Random(42).randbytes(12 * MiB)


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 3 * MiB), min_size=1, max_size=12))
def test_cut_points_do_not_depend_on_the_blocks(sizes):
    blocks, at = [], 0
    for size in sizes:
        blocks.append(STREAM[at : at + size])
        at += size
    blocks.append(STREAM[at:])

    assert [len(c) for c in cut(blocks, FORMAT, 7)] == [len(c) for c in cut([STREAM], FORMAT, 7)]


def test_cut_points_stay_as_they_were():
    # Frozen: other cut points would store every stream of every repository once more.
    assert [len(chunk) for chunk in cut([STREAM], FORMAT, 7)][:6] == CUT_POINTS


def test_cut_points_depend_on_the_key_of_the_repository():
    assert [len(c) for c in cut([STREAM], FORMAT, 7)] != [len(c) for c in cut([STREAM], FORMAT, 8)]


def test_chunks_of_a_stream_keep_their_limits():
    sizes = [len(chunk) for chunk in cut([STREAM], FORMAT, 7)]

    assert sum(sizes) == len(STREAM)
    assert all(256 * KiB <= size <= 4 * MiB for size in sizes[:-1])


extents = st.lists(st.tuples(st.integers(1, 300_000), st.integers(1, 300_000)), max_size=8).map(
    lambda gaps: [Extent(sum(a + b for a, b in gaps[:n]) + gaps[n][0], gaps[n][1]) for n in range(len(gaps))]
)


@given(extents=extents)
def test_the_pieces_of_chunks_cover_the_extents_and_stay_inside(extents):
    reads = list(allocated(extents, 64 * KiB))

    covered = set()
    for each in reads:
        for piece in each.pieces:
            assert each.number * 64 * KiB <= piece.start < piece.end <= (each.number + 1) * 64 * KiB
            covered.update(range(piece.start // 97, piece.end // 97 + 1))
    assert all(set(range(e.start // 97, e.end // 97)) <= covered for e in extents)
    assert [each.number for each in reads] == sorted({each.number for each in reads})


@given(extents=extents, ranges=extents)
def test_changed_chunks_are_those_that_a_range_touches(extents, ranges):
    reads = list(changed(extents, reversed(ranges), 64 * KiB))

    touched = {n for e in ranges for n in range(e.start // (64 * KiB), -(-e.end // (64 * KiB)))}
    assert [each.number for each in reads] == sorted(touched)
    full = {each.number: each for each in allocated(extents, 64 * KiB)}
    assert all(each == full.get(each.number, each) for each in reads)


def test_session_ids_sort_by_time():
    begun = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    made = [new_session_id(begun + timedelta(milliseconds=n)) for n in range(5)]

    assert made == sorted(made)
    assert all(map(is_session_id, made))
    assert made[0].startswith("20260102T030405000Z-")


def test_work_is_done_in_order_and_an_error_stops_it():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    assert list(in_order(lambda n: n * n, range(100))) == [n * n for n in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda n: 1 // (n - 10), items(), threads=2))
    assert len(taken) < 30
