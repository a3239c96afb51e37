"""Repair from the disks that were saved: what they still hold is stored again, and nothing else."""

import random
from itertools import count

import pytest

from vmkeep.disks.device import Extent
from vmkeep.errors import IntegrityError, NotFoundError, SourceError
from vmkeep.repository import Repository
from vmkeep.repository.manifest import SavedComponent
from vmkeep.repository.repair_live import repair_from_disks
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed, at, flip
from vmkeep.testing.repositories import CHUNK, KEY, LEAF, BytesDisk, backup, contents, point, small_repository

DISK = random.Random(1).randbytes(40 * CHUNK) + bytes(LEAF * CHUNK) + b"end"


@pytest.fixture
def store(tmp_path):
    store = MemoryStore()
    backup(small_repository(store), tmp_path / "s", {"root": DISK}, {"dump": b"rows" * 4000})
    return store


def opened(store):
    return Repository.open(store, KEY)


def damage_all(store):
    """Flip a bit in the middle of every record of a disk, leaves included; streams stay whole."""
    repository = opened(store)
    (saved,) = [each for each in repository.points() if "filesystems.root" in each.components][-1:]
    index = repository.committed.refresh()
    ref = saved.components["filesystems.root"].disks["root"]
    chunks = {*ref.leaves, *(chunk for _, chunk in repository.trees.disk_chunks(ref))} - {bytes(32)}
    for chunk in chunks:
        place = index.locate(chunk)
        key = f"packs/{place.pack.name.hex()[:2]}/{place.pack.name.hex()}"
        store._objects[key] = flip(store._objects[key], place.offset + 48 + place.stored // 2)
    return len(chunks)


def mend(store, disk):
    repository = opened(store)
    found = repository.scrub()
    assert not found.sound

    def open_disk(vm, name):
        assert (vm, name) == ("db1", "root")
        return BytesDisk(disk)

    return repair_from_disks(repository, found.damages, found.broken, open_disk)


def test_all_chunks_and_leaves_are_made_again(store):
    assert damage_all(store) > 40

    done = mend(store, DISK)

    assert (done.left, len(done.mended) > 0) == ((), True)
    (saved,) = opened(store).points()
    assert contents(opened(store), saved)["root"] == DISK
    assert opened(store).verify(saved).sound
    assert opened(store).scrub().damages == ()


def test_what_the_disk_holds_by_now_is_never_taken(store):
    expected = opened(store).points()[0].components["filesystems.root"].disks["root"]
    damage_all(store)
    changed = bytearray(DISK)
    changed[3 * CHUNK] ^= 1

    done = mend(store, bytes(changed))

    assert any("something else" in why or "not what it was" in why for _, why in done.left)
    repository = opened(store)
    with pytest.raises(IntegrityError):
        contents(repository, repository.points()[0])
    for at_, chunk in whole_chunks(repository, expected):
        assert bytes(chunk) == DISK[at_ : at_ + len(chunk)]
    assert done.mended


def whole_chunks(repository, ref):
    for number in range(len(ref.leaves)):
        try:
            ids = repository.trees.disk_leaf(ref, number)
        except IntegrityError:
            continue
        for below, chunk in enumerate(ids):
            if chunk != bytes(32):
                yield (number * LEAF + below) * CHUNK, repository.trees.chunks.get(chunk)


@pytest.mark.parametrize("disk", [DISK + b"grown", b""])
def test_a_disk_of_another_size_helps_nothing(store, disk):
    damage_all(store)
    before = store._objects.keys() - set()

    done = mend(store, disk)

    assert done.mended == ()
    assert all("bytes now" in why for _, why in done.left)
    assert {key for key in store._objects if key.startswith(("packs/", "index/"))} <= before


@pytest.mark.parametrize("error", [SourceError("VM db1 runs"), NotFoundError("no such disk")])
def test_a_disk_that_cannot_be_read_is_said(store, error):
    damage_all(store)
    repository = opened(store)
    found = repository.scrub()

    def open_disk(*_):
        raise error

    done = repair_from_disks(repository, found.damages, found.broken, open_disk)

    assert {why for _, why in done.left} == {str(error)}
    assert len(done.left) == len(found.damages)


def test_a_damaged_stream_is_left_and_said(store):
    for key in [key for key in store._objects if key.startswith("packs/")]:
        store._objects[key] = flip(store._objects[key], len(store._objects[key]) // 2)
    repository = opened(store)
    found = repository.scrub()
    streams = [each for each in found.damages if each.place.item == "stream dump"]

    done = repair_from_disks(repository, streams, found.broken, lambda *_: BytesDisk(DISK))

    assert streams
    assert {why for _, why in done.left} == {"only whole disks are read anew; back this component up again"}


def test_points_of_several_data_epochs_are_mended(store, tmp_path):
    repository = opened(store)
    repository.access.begin_epoch(KEY)
    (old,) = repository.points()
    changed = b"new" * 100 + DISK[300:]
    with repository.begin(vm="db1", run="run-2", spool=tmp_path / "t") as session:
        ref, stats = session.save_disk(
            BytesDisk(changed),
            parent=old.components["filesystems.root"].disks["root"],
            changed=[Extent(0, CHUNK)],
        )
        session.record(SavedComponent("filesystems.root", {"root": ref}, stats=stats))
        session.upload()
        session.seal(point(session.recorded()))
    damage_all(store)

    done = mend(store, changed)

    left = {each.session for each, _ in done.left}
    assert left <= {old.session}
    assert contents(opened(store), opened(store).points()[-1]) == {"root": changed}
    assert opened(store).verify(opened(store).points()[-1]).sound


def test_a_repair_that_is_killed_at_any_request_makes_nothing_worse(store):
    damage_all(store)
    for number in count(1, 3):
        broken = MemoryStore()
        broken._objects = dict(store._objects)
        try:
            repository = opened(FaultyStore(broken, at(number, Fault.KILLED)))
            found = repository.scrub()
            repair_from_disks(repository, found.damages, found.broken, lambda *_: BytesDisk(DISK))
        except Killed:
            assert mend(broken, DISK).left == ()
            repository = opened(broken)
            assert contents(repository, repository.points()[0])["root"] == DISK
        else:
            break
    assert number > 20
