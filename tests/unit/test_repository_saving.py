"""What is saved comes back, and what is there already is neither read nor stored again."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmkeep.disks.device import Extent
from vmkeep.errors import ConflictError, InputError, IntegrityError, NotFoundError, SourceError
from vmkeep.repository import Repository, SavedComponent
from vmkeep.stores import DirectoryStore, MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore
from vmkeep.testing.repositories import (
    CHUNK,
    KEY,
    LEAF,
    BytesDisk,
    backup,
    contents,
    point,
    restored,
    save,
    small_repository,
)


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


@pytest.fixture
def repository():
    return small_repository(MemoryStore())


@pytest.fixture
def session(repository, tmp_path):
    with repository.begin(vm="db1", run="run-1", spool=tmp_path / "spool") as session:
        yield session


def kept(session, content, **options):
    """Save a disk and make it readable."""
    source = BytesDisk(content)
    ref, stats = session.save_disk(source, **options)
    session.record(SavedComponent("os", {"root": ref}))
    session.upload()
    session.seal(point(session.recorded()))
    return source, ref, stats


blocks = st.lists(st.one_of(st.just(b""), st.binary(min_size=1, max_size=40)), max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=blocks, tail=st.binary(max_size=100))
def test_a_disk_of_any_content_comes_back(parts, tail, tmp_path_factory):
    content = b"".join(part.ljust(CHUNK, b"\0") for part in parts) + tail
    repository = small_repository(MemoryStore())

    saved = backup(repository, tmp_path_factory.mktemp("s") / "spool", {"root": content})

    assert contents(repository, saved) == {"root": content}


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.binary(max_size=9000), max_size=8))
def test_a_stream_comes_back_whatever_the_sizes_of_its_blocks(parts, tmp_path_factory):
    repository = small_repository(MemoryStore())
    with repository.begin(vm="v", run="r", spool=tmp_path_factory.mktemp("s") / "spool") as session:
        ref, stats = session.save_stream(parts)
        session.record(SavedComponent("databases.a", streams={"dump": ref}))
        session.upload()
        session.seal(point(session.recorded()))

    assert b"".join(repository.read_stream(ref)) == b"".join(parts)
    assert stats.read == ref.size == sum(map(len, parts))


@pytest.mark.parametrize(
    ("start", "length"), [(0, 1), (5000, 20_000), (99_999, None), (0, 0), (60_000, 10**9)]
)
def test_a_part_of_a_stream_is_read(repository, tmp_path, start, length):
    content = noise(100_000)
    saved = backup(repository, tmp_path / "spool", {}, {"dump": content})
    ref = saved.components["databases.dump"].streams["dump"]

    end = None if length is None else start + length
    assert b"".join(repository.read_stream(ref, start, length)) == content[start:end]


def test_a_reused_block_of_a_stream_does_not_harm(session, repository):
    block = bytearray(3000)

    def reusing():
        for seed in range(20):
            block[:] = noise(3000, seed)
            yield block

    ref, _ = session.save_stream(reusing())
    session.record(SavedComponent("databases.a", streams={"dump": ref}))
    session.upload()
    session.seal(point(session.recorded()))

    assert b"".join(repository.read_stream(ref)) == b"".join(noise(3000, seed) for seed in range(20))


def test_holes_are_neither_read_nor_stored(session):
    content = bytes(50 * CHUNK) + noise(CHUNK) + bytes(50 * CHUNK)
    source = BytesDisk(content)

    ref, stats = session.save_disk(source)

    assert source.read == stats.read == stats.new == CHUNK
    assert sum(leaf != bytes(32) for leaf in ref.leaves) == 1


def test_the_same_disk_again_stores_nothing(repository, tmp_path):
    content = noise(40 * CHUNK + 7)
    backup(repository, tmp_path / "spool", {"root": content})

    saved = backup(repository, tmp_path / "spool", {"root": content}, run="run-2")

    assert saved.stats.new == saved.stats.stored == 0
    assert contents(repository, saved) == {"root": content}


def test_equal_data_in_one_session_is_stored_once(session):
    content = noise(4 * CHUNK)

    _, first = session.save_disk(BytesDisk(content))
    _, second = session.save_disk(BytesDisk(content))

    assert first.new == 4 * CHUNK
    assert second.new == second.stored == 0


def test_an_insertion_into_a_stream_stores_only_what_is_near_it(repository, tmp_path):
    content = noise(400_000)
    backup(repository, tmp_path / "spool", {}, {"dump": content})

    saved = backup(
        repository, tmp_path / "spool", {}, {"dump": content[:200_000] + b"new" + content[200_000:]}, run="2"
    )

    assert saved.stats.new < 30_000


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 30 * CHUNK),
    new_size=st.integers(1, 30 * CHUNK),
    writes=st.lists(
        st.tuples(st.integers(0, 30 * CHUNK), st.sampled_from([b"", b"x", b"y" * 5000])), max_size=4
    ),
)
def test_an_incremental_is_equal_to_the_disk_and_reads_only_what_changed(
    size, new_size, writes, tmp_path_factory
):
    repository = small_repository(MemoryStore())
    folder = tmp_path_factory.mktemp("s")
    content = bytearray(noise(size))
    parent = backup(repository, folder / "spool", {"root": bytes(content)})
    content[new_size:] = b""
    content.extend(bytes(new_size - len(content)))
    changed = []
    for start, data in writes:
        part = (data or bytes(2 * CHUNK))[: max(0, new_size - start)]
        content[start : start + len(part)] = part
        changed.append(Extent(start, len(part)))

    with repository.begin(vm="db1", run="run-2", spool=folder / "spool") as session:
        ref_before = parent.components["filesystems.root"].disks["root"]
        source, ref, _ = kept(session, bytes(content), parent=ref_before, changed=changed)

    assert restored(repository, ref) == content
    touched = {n for e in changed for n in range(e.start // CHUNK, -(-e.end // CHUNK)) if e.length}
    grown = max(0, -(-new_size // CHUNK) - min(size, new_size) // CHUNK) if size != new_size else 0
    assert source.read <= (len(touched) + grown) * CHUNK


def test_an_incremental_writes_only_the_leaves_it_touched(repository, tmp_path):
    content = bytearray(noise(4 * LEAF * CHUNK))
    before = backup(repository, tmp_path / "spool", {"root": bytes(content)})
    parent = before.components["filesystems.root"].disks["root"]
    content[LEAF * CHUNK] ^= 1

    with repository.begin(vm="db1", run="run-2", spool=tmp_path / "spool") as session:
        _, ref, _ = kept(session, bytes(content), parent=parent, changed=[Extent(LEAF * CHUNK, 1)])

    assert [a == b for a, b in zip(parent.leaves, ref.leaves, strict=True)] == [True, False, True, True]


def test_what_a_parent_lost_is_read_again_though_nothing_changed(repository, tmp_path):
    content = noise(3 * LEAF * CHUNK)
    parent = backup(repository, tmp_path / "spool", {"root": content})
    repository.store.delete(f"points/db1/{parent.session}")
    fresh = Repository.open(repository.store, KEY)

    with fresh.begin(vm="db1", run="run-2", spool=tmp_path / "spool") as session:
        disk = parent.components["filesystems.root"].disks["root"]
        _, ref, _ = kept(session, content, parent=disk, changed=[])

    assert restored(fresh, ref) == content


def test_what_is_said_not_to_have_changed_is_compared_in_samples(repository, tmp_path):
    content = bytearray(noise(2 * LEAF * CHUNK) + bytes(LEAF * CHUNK) + noise(CHUNK // 2))
    before = backup(repository, tmp_path / "spool", {"root": bytes(content)})
    parent = before.components["filesystems.root"].disks["root"]
    content[:CHUNK] = noise(CHUNK, 2)
    other = BytesDisk(noise(len(content), 3))
    told = [Extent(0, 1)]

    with repository.begin(vm="db1", run="run-2", spool=tmp_path / "spool") as session:
        for _ in range(20):
            assert session.deviation(BytesDisk(bytes(content)), parent, told) is None
        found = session.deviation(other, parent, told)
        assert session.deviation(other, parent, [Extent(0, len(content))]) is None
    assert found is not None
    assert found % CHUNK == 0
    assert found >= CHUNK


def test_many_threads_save_in_one_session(repository, tmp_path):
    contents_ = {f"d{n}": noise(20 * CHUNK, n // 2) for n in range(8)}
    with repository.begin(vm="db1", run="run-1", spool=tmp_path / "spool") as session:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda each: save(session, dict([each])), contents_.items()))
        session.upload()
        saved = session.seal(point(session.recorded()))

    assert contents(repository, saved) == contents_


def test_two_sessions_of_one_vm_at_once_both_count(repository, tmp_path):
    contents_ = [{"root": noise(30 * CHUNK, n)} for n in range(2)]
    barrier = threading.Barrier(2)

    def run(number):
        barrier.wait()
        return backup(repository, tmp_path / f"spool{number}", contents_[number], run=f"run-{number}")

    with ThreadPoolExecutor(2) as pool:
        saved = list(pool.map(run, range(2)))

    assert [contents(repository, each) for each in saved] == contents_
    assert {each.session for each in repository.points("db1")} == {each.session for each in saved}


def test_the_spool_never_grows_far_beyond_its_limit(repository, tmp_path):
    spool = tmp_path / "spool"
    most = 0

    def watch(_size):
        nonlocal most
        most = max(most, len(list(spool.glob("packs/*.pack"))))

    with repository.begin(vm="db1", run="r", spool=spool, spool_limit=100_000) as session:
        session.save_disk(BytesDisk(noise(300 * CHUNK)), progress=watch)

    assert 0 < most <= 4  # of 64 KiB


def test_progress_adds_up(repository, tmp_path):
    content = bytes(10 * CHUNK) + noise(20 * CHUNK) + bytes(10 * CHUNK)
    done, back = [], []
    with repository.begin(vm="db1", run="r", spool=tmp_path / "spool") as session:
        _, ref, _ = kept(session, content, progress=done.append)
    repository.restore_disk(ref, BytesDisk(ref.size), progress=back.append)

    assert sum(done) == 20 * CHUNK
    assert sum(back) == 40 * CHUNK


def test_only_what_the_present_disk_does_not_hold_is_fetched(repository, tmp_path, monkeypatch):
    content = noise(40 * CHUNK) + bytes(3 * CHUNK) + b"end"
    saved = backup(repository, tmp_path / "spool", {"root": content})
    ref = saved.components["filesystems.root"].disks["root"]
    changed = bytearray(content)
    changed[7 * CHUNK + 5] ^= 1
    changed[41 * CHUNK] = 1  # what was a hole
    fetched = []
    each_of = repository.trees.chunks.each_of
    monkeypatch.setattr(repository.trees.chunks, "each_of", lambda run: fetched.extend(run) or each_of(run))
    target, back = BytesDisk(ref.size), []

    held = repository.restore_disk(ref, target, present=BytesDisk(bytes(changed)), progress=back.append)

    assert target.content == content
    leaf, below = divmod(7, repository.trees.fan)
    lost = repository.trees.disk_leaf(ref, leaf)[below]
    assert [one.id for one in fetched if one.id not in ref.leaves] == [lost]
    assert held == 39 * CHUNK + len(b"end")
    assert sum(back) == len(content)


def test_a_present_disk_that_holds_other_data_is_tried_and_not_read(repository, tmp_path, monkeypatch):
    monkeypatch.setattr("vmkeep.repository.restore_disk._TRIED", 2)
    content = noise(4 * LEAF * CHUNK)
    saved = backup(repository, tmp_path / "spool", {"root": content})
    ref = saved.components["filesystems.root"].disks["root"]
    other, target = BytesDisk(noise(len(content), 2)), BytesDisk(ref.size)

    assert repository.restore_disk(ref, target, present=other) == 0
    assert target.content == content
    assert other.read == 4 * 2 * CHUNK


def test_a_present_disk_that_cannot_be_read_or_has_another_size_is_of_no_use_and_no_harm(
    repository, tmp_path, monkeypatch
):
    content = noise(4 * CHUNK)
    ref = (
        backup(repository, tmp_path / "spool", {"root": content}).components["filesystems.root"].disks["root"]
    )
    present = BytesDisk(content)

    def fail(_offset, _buffer):
        raise SourceError("a bad sector")

    monkeypatch.setattr(present, "read_into", fail)
    for one in (present, BytesDisk(content + bytes(CHUNK))):
        target = BytesDisk(ref.size)
        assert repository.restore_disk(ref, target, present=one) == 0
        assert target.content == content


def test_holes_overwrite_a_target_that_is_not_fresh(repository, tmp_path):
    content = noise(CHUNK) + bytes(20 * CHUNK) + b"end"
    saved = backup(repository, tmp_path / "spool", {"root": content})
    ref = saved.components["filesystems.root"].disks["root"]
    target = BytesDisk(b"\xff" * (len(content) + 5000), fresh=False)

    repository.restore_disk(ref, target)

    assert target.content == content + bytes(5000)


def test_a_target_that_is_too_small_is_refused(repository, tmp_path):
    saved = backup(repository, tmp_path / "spool", {"root": noise(9000)})

    with pytest.raises(InputError, match="has 8999 bytes; 9000 are needed"):
        repository.restore_disk(saved.components["filesystems.root"].disks["root"], BytesDisk(8999))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_saved_disk_is_read_anywhere(data, tmp_path_factory):
    content = noise(3 * CHUNK) + bytes(9 * CHUNK) + noise(CHUNK + 9, 2)
    repository = small_repository(MemoryStore())
    saved = backup(repository, tmp_path_factory.mktemp("s") / "spool", {"root": content})
    start = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, len(content) - start))

    with repository.open_disk(saved.components["filesystems.root"].disks["root"]) as disk:
        buffer = bytearray(length)
        disk.read_into(start, memoryview(buffer))
        extents = list(disk.extents())

    assert buffer == content[start : start + length]
    assert extents == [Extent(0, 3 * CHUNK), Extent(12 * CHUNK, CHUNK + 9)]


def test_points_are_listed_oldest_first_and_found_by_a_part_of_their_id(repository, tmp_path):
    saved = [backup(repository, tmp_path / "s", {"root": noise(100, n)}, run=f"r{n}") for n in range(3)]
    backup(repository, tmp_path / "s2", {"root": b"x"}, vm="app1")

    assert [each.session for each in repository.points("db1")] == [each.session for each in saved]
    assert len(repository.points()) == 4
    assert repository.point("db1") == saved[-1]
    assert repository.point("db1", saved[0].session) == saved[0]
    with pytest.raises(InputError, match="fits 3 recovery points"):
        repository.point("db1", saved[0].session[:4])
    with pytest.raises(NotFoundError, match="no recovery point 'latest' of web1"):
        repository.point("web1")


def test_a_point_says_all_that_it_was_given(repository, tmp_path):
    saved = backup(repository, tmp_path / "s", {"root": noise(9000)}, {"dump": noise(9000, 2)})

    again = Repository.open(repository.store, KEY).point("db1")

    assert again == saved
    assert again.run == "run-1"
    assert again.sealed


def test_a_component_that_was_not_recorded_or_uploaded_is_never_sealed(repository, tmp_path):
    away = True

    def fault(request):
        return Fault.AWAY if away and request.key.startswith("packs/") else None

    store = FaultyStore(repository.store, fault)
    with Repository.open(store, KEY).begin(vm="db1", run="run-1", spool=tmp_path / "spool") as session:
        ref, _ = session.save_disk(BytesDisk(noise(9000)))
        component = SavedComponent("os", {"root": ref})

        with pytest.raises(IntegrityError, match="not recorded"):
            session.seal(point({"os": component}))
        session.record(component)
        assert not session.uploaded("os")
        with pytest.raises(IntegrityError, match="not uploaded"):
            session.seal(point({"os": component}))
        away = False
        session.upload("os")
        assert session.uploaded("os")
        assert session.seal(point({"os": component})).complete


def test_a_void_session_leaves_no_point_and_no_spool(repository, tmp_path):
    with repository.begin(vm="db1", run="r", spool=tmp_path / "spool") as session:
        save(session, {"root": noise(9000)})
        session.upload()
        session.void("the VM was started — too early, " * 20)

    assert repository.points() == []
    assert not (tmp_path / "spool").exists()
    assert not list(repository.store.list("open/"))


def test_chunks_of_a_void_session_do_not_count(repository, tmp_path):
    with repository.begin(vm="db1", run="r", spool=tmp_path / "spool") as session:
        save(session, {"root": noise(9000)})
        session.upload()
        session.void("test")

    saved = backup(Repository.open(repository.store, KEY), tmp_path / "spool", {"root": noise(9000)})

    assert saved.stats.new == 9000


def test_a_sealed_session_cannot_become_void(session):
    session.seal(point({}))

    with pytest.raises(ConflictError, match="cannot become void"):
        session.void("too late")


@pytest.mark.usefixtures("session")
def test_the_spool_is_used_by_one_session_at_a_time(repository, tmp_path):
    with pytest.raises(ConflictError, match="in use by another backup"):
        repository.begin(vm="db1", run="run-1", spool=tmp_path / "spool")


def test_runs_are_kept_once(repository):
    repository.put_run("run-1", {"points": ["a"], "skew": 0.5})
    repository.put_run("run-1", {"points": ["a"], "skew": 0.5})

    assert repository.runs() == {"run-1": {"points": ["a"], "skew": 0.5}}
    with pytest.raises(ConflictError, match="another record"):
        repository.put_run("run-1", {"points": []})


def test_a_directory_store_takes_packs_without_copying_them(tmp_path):
    repository = small_repository(DirectoryStore(tmp_path / "store"))

    saved = backup(repository, tmp_path / "spool", {"root": noise(90_000)})

    assert contents(repository, saved) == {"root": noise(90_000)}
    assert all(file.stat().st_nlink == 1 for file in (tmp_path / "store").rglob("*") if file.is_file())
