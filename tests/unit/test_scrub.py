"""Scrubbing: all that is stored is read back in turn, and damage is told with all that it concerns."""

from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.repository import Repository, layout, scrubbed
from vmkeep.repository.manifest import SavedComponent
from vmkeep.repository.roles import ROLES
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import flip
from vmkeep.testing.repositories import CHUNK, KEY, BytesDisk, backup, contents, point, small_repository
from vmkeep.testing.roles import RestrictedStore

DAY = datetime(2026, 1, 1, tzinfo=UTC)
NIGHT = timedelta(days=1)


@pytest.fixture
def store(tmp_path):
    store = MemoryStore()
    repository = small_repository(store)
    disk = bytearray(noise(60 * CHUNK))
    backup(repository, tmp_path / "s", {"root": bytes(disk)}, {"dump": noise(9 * CHUNK, 7)}, run="r1")
    disk[:CHUNK] = noise(CHUNK, 3)
    backup(repository, tmp_path / "s", {"root": bytes(disk)}, {"dump": noise(9 * CHUNK, 7)}, run="r2")
    return store


def noise(size, seed=1):
    import random  # noqa: PLC0415

    return random.Random(seed).randbytes(size)


def again(store):
    return Repository.open(store, KEY)


def damaged_at(store, chunk):
    """Flip a bit of a chunk, and return the pack's name."""
    place = again(store).trees.chunks.locate(chunk)
    key = f"packs/{place.pack.name.hex()[:2]}/{place.pack.name.hex()}"
    store._objects[key] = flip(store._objects[key], place.offset + 60)
    return place.pack.name


def chunk_of(store, number, point=0):
    repository = again(store)
    disk = repository.points()[point].components["filesystems.root"].disks["root"]
    return [*repository.trees.disk_chunks(disk)][number][1]


def test_all_packs_have_their_turn_although_a_clock_was_ahead(store):
    for night in range(4):
        again(store).scrub(share=0.2, now=DAY + 3650 * NIGHT + night * NIGHT)
    packs = {pack.name for pack in again(store).committed.refresh().packs}
    for name in packs:
        key = layout.pack(name)
        store._objects[key] = flip(store._objects[key], 100)
    found = set()

    for night in range(8):
        found |= {*again(store).scrub(share=0.2, now=DAY + night * NIGHT).broken}
        for key in scrubbed.superseded(store):
            store.delete(key)

    assert found == packs


def test_all_packs_are_read_once_before_any_is_read_again(store):
    packs = len(again(store).committed.refresh().packs)
    reports = [again(store).scrub(share=0.2, now=DAY + night * NIGHT) for night in range(6)]

    assert packs > 4
    assert reports[0].oldest is None
    assert sum(report.packs for report in reports[:-1]) >= packs
    assert reports[-1].oldest is not None
    assert reports[-1].oldest > DAY


def test_a_whole_scrub_reads_everything(store):
    report = again(store).scrub(now=DAY)

    assert report.sound
    assert (report.packs, report.chunks) == (report.of, len(again(store).committed.refresh()))
    assert report.oldest == DAY


def test_damage_is_told_for_every_point_that_it_concerns(store):
    pack = damaged_at(store, chunk_of(store, 30))

    report = again(store).scrub()

    assert report.broken == (pack,)
    assert [damage.session for damage in report.damages] == [point.session for point in again(store).points()]
    assert {damage.place.offset for damage in report.damages} == {30 * CHUNK}


def test_damage_of_an_old_point_only_is_told_for_that_one(store):
    damaged_at(store, chunk_of(store, 0))

    report = again(store).scrub()

    assert [damage.session for damage in report.damages] == [again(store).points()[0].session]


def test_a_missing_pack_is_found_although_nothing_of_it_can_be_read(store):
    key = next(iter(store.list("packs/"))).key
    store.delete(key)

    report = again(store).scrub()

    assert [name.hex() for name in report.broken] == [key.rpartition("/")[2]]
    assert report.damages
    assert not report.sound


def test_a_damaged_footer_is_found(store):
    key = next(iter(store.list("packs/"))).key
    store._objects[key] = flip(store._objects[key], len(store._objects[key]) - 20)

    report = again(store).scrub()

    assert [name.hex() for name in report.broken] == [key.rpartition("/")[2]]


def test_a_damaged_point_is_found(store):
    key = next(iter(store.list("points/"))).key
    store._objects[key] = flip(store._objects[key], 90)

    report = again(store).scrub()

    assert key in report.problems[0]


def test_what_two_remember_at_once_both_counts(store):
    packs = len(again(store).committed.refresh().packs)
    both = [again(store), again(store)]
    for repository in both:
        repository.scrub(share=0.5, now=DAY)

    third = again(store).scrub(share=0.5, now=DAY + NIGHT)

    assert third.packs < packs
    assert third.oldest == DAY


def test_what_is_remembered_does_not_pile_up(store):
    for night in range(6):
        again(store).scrub(share=0.1, now=DAY + night * NIGHT)

    again(store).collect()

    assert len([*store.list("verified/")]) == 3


def test_a_memory_that_is_damaged_is_as_none(store):
    again(store).scrub(now=DAY)
    (info,) = store.list("verified/")
    store._objects[info.key] = flip(store._objects[info.key], 70)

    assert again(store).scrub(share=0.1).oldest is None


def test_a_restorer_may_scrub(store):
    restricted = RestrictedStore(store, ROLES["restorer"])

    report = Repository.open(restricted, KEY).scrub(now=DAY)

    assert report.sound
    assert restricted.denied == []
    assert len([*store.list("verified/")]) == 1


@pytest.mark.parametrize("role", ["writer", None])
def test_a_backup_stores_again_what_was_found_to_be_damaged(store, tmp_path, role):
    old = again(store).points()[-1]
    before = contents(again(store), old)
    for info in [*store.list("packs/")]:
        store._objects[info.key] = flip(store._objects[info.key], info.size // 3)
    assert again(store).scrub(now=DAY).damages

    place = store if role is None else RestrictedStore(store, ROLES[role])
    with Repository.open(place, KEY).begin(vm="db1", run="r3", spool=tmp_path / "t") as session:
        parent = old.components["filesystems.root"].disks["root"]
        ref, stats = session.save_disk(BytesDisk(before["root"]), parent=parent, changed=())
        session.record(SavedComponent("filesystems.root", {"root": ref}, stats=stats))
        session.upload()
        new = session.seal(point(session.recorded()))

    assert ref == parent
    assert contents(again(store), new) == {"root": before["root"]}
    assert not [
        one
        for one in again(store).scrub(now=DAY).damages
        if one.place.item == "disk root" and one.session in {old.session, new.session}
    ]
