"""A recovery point that is held is not forgotten, by nobody, and nothing it needs is deleted."""

import random
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.errors import ConflictError, InputError, NotFoundError
from vmkeep.operations import holds as operation
from vmkeep.repository import Repository, layout, sealed
from vmkeep.repository.forgotten import forget as put_tombstone
from vmkeep.repository.records import to_json
from vmkeep.repository.roles import ROLES
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import FaultyStore
from vmkeep.testing.repositories import CHUNK, KEY, backup, contents, small_repository
from vmkeep.testing.roles import RestrictedStore

OLD = {"root": random.Random(1).randbytes(20 * CHUNK)}
NEW = {"root": random.Random(2).randbytes(20 * CHUNK)}


def over(repository, point, name):
    """Hold a point until a moment that has passed, as if that had been done in time."""
    made = repository.hold(
        point, name=name, reason="for a while", until=datetime.now(UTC) + timedelta(days=1)
    )
    past = replace(made, id=made.id[:-1] + "f", until="2026-01-01T00:00:00+00:00")
    key = layout.hold(point.session, past.id)
    repository.store.put_if_absent(key, sealed.seal(repository.keys, "hold", key, to_json(asdict(past))))
    repository.release(made, "only one of them")


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def repository(store):
    return small_repository(store)


@pytest.fixture
def points(repository, tmp_path):
    return [
        backup(repository, tmp_path, disks, run=f"run-{number}") for number, disks in enumerate((OLD, NEW))
    ]


def again(repository):
    return Repository.open(repository.store, KEY)


def test_what_is_held_is_not_forgotten(repository, points):
    repository.hold(points[0], name="case 7", reason="the auditors")

    with pytest.raises(ConflictError, match="held as 'case 7': the auditors"):
        again(repository).forget(points[0], "retention")

    assert len(again(repository).points()) == 2


def test_what_is_released_is_forgotten_like_any_other(repository, points):
    repository.hold(points[0], name="case 7", reason="the auditors")

    operation.unhold(again(repository), points[0], "case 7", "closed")
    again(repository).forget(points[0], "retention")

    assert again(repository).collect().packs
    assert [one.session for one in again(repository).points()] == [points[1].session]


def test_a_hold_that_is_over_keeps_nothing(repository, points):
    over(repository, points[0], "audit")

    again(repository).forget(points[0], "retention")

    assert [one.session for one in again(repository).points()] == [points[1].session]


def test_each_of_several_holds_must_be_released(repository, points):
    for name in ("a", "b"):
        repository.hold(points[0], name=name, reason="why")
    operation.unhold(repository, points[0], "a", "")

    with pytest.raises(ConflictError, match="held as 'b'"):
        repository.forget(points[0], "retention")


def test_who_looked_before_the_hold_was_there_looks_again(store, repository, points):
    def meanwhile(request):
        if request.verb == "put" and request.key == f"forgotten/{points[0].session}":
            repository.hold(points[0], name="case 7", reason="the auditors")

    with pytest.raises(ConflictError, match="held as 'case 7'"):
        Repository.open(FaultyStore(store, meanwhile), KEY).forget(points[0], "retention")

    again(repository).collect()
    assert contents(again(repository), again(repository).points()[0]) == OLD


def test_a_hold_that_comes_too_late_is_refused(repository, points):
    repository.forget(points[0], "retention")

    with pytest.raises(NotFoundError, match="was forgotten"):
        again(repository).hold(points[0], name="case 7", reason="the auditors")

    assert again(repository).holds() == []
    assert again(repository).collect().packs


def test_a_tombstone_that_is_put_before_the_hold_is_certain_refuses_it(store, repository, points):
    def meanwhile(request):
        if request.verb == "put" and request.key.startswith("forgotten/"):
            put_tombstone(store, repository.keys, vm="db1", session=points[0].session, reason="now")

    with pytest.raises(NotFoundError, match="was forgotten"):
        Repository.open(FaultyStore(store, meanwhile), KEY).hold(points[0], name="x", reason="y")


def test_one_name_holds_once(repository, points):
    repository.hold(points[0], name="case 7", reason="the auditors")

    with pytest.raises(ConflictError, match="already"):
        repository.hold(points[0], name="case 7", reason="again")


def test_a_name_can_be_used_again_once_it_is_released(repository, points):
    repository.hold(points[0], name="case 7", reason="the auditors")
    operation.unhold(repository, points[0], "case 7", "")

    repository.hold(points[0], name="case 7", reason="again")

    assert [one.reason for one in repository.holds(points[0])] == ["again"]


def test_all_holds_of_a_name_are_released_also_one_that_is_over(repository, points):
    over(repository, points[0], "case 7")
    repository.hold(points[0], name="case 7", reason="longer")

    operation.unhold(repository, points[0], "case 7", "closed")

    assert repository.holds(points[0]) == []
    assert operation.held_as(repository) == {}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"name": " ", "reason": "why"}, "needs a name"),
        ({"name": "a", "reason": "why", "until": datetime(2026, 1, 1, tzinfo=UTC)}, "would be over already"),
    ],
)
def test_a_hold_that_could_not_hold_or_be_released_is_refused(repository, points, how, told):
    with pytest.raises(InputError, match=told):
        repository.hold(points[0], **how)

    assert repository.holds() == []


def test_a_hold_that_is_damaged_holds_until_it_is_released(store, repository, points):
    made = repository.hold(points[0], name="case 7", reason="the auditors")
    key = layout.hold(points[0].session, made.id)
    store.delete(key)
    store.put_if_absent(key, b"rubbish of some length that is no sealed object")

    with pytest.raises(ConflictError, match=f"--name damaged-{made.id}"):
        again(repository).forget(points[0], "retention")

    operation.unhold(repository, points[0], f"damaged-{made.id}", "nobody knows it")
    again(repository).forget(points[0], "retention")


def test_an_unknown_hold_is_told_with_those_there_are(repository, points):
    repository.hold(points[0], name="case 7", reason="the auditors")

    with pytest.raises(NotFoundError, match="not held as 'case 8': it has 'case 7'"):
        operation.unhold(repository, points[0], "case 8", "")


def test_nothing_is_deleted_or_overwritten_to_hold_and_release(store, repository, points):
    faulty = FaultyStore(store)
    repository = Repository.open(faulty, KEY)
    repository.hold(points[0], name="case 7", reason="the auditors")
    operation.unhold(repository, points[0], "case 7", "")

    assert {one.verb for one in faulty.requests} <= {"get", "list", "put"}
    puts = [one.key for one in faulty.requests if one.verb == "put"]
    assert len(puts) == len(set(puts)) == 3


def test_a_collector_holds_and_others_only_see_it(store, points):
    def as_role(role):
        return Repository.open(RestrictedStore(store, ROLES[role]), KEY)

    as_role("collector").hold(points[0], name="case 7", reason="the auditors")

    assert [one.name for one in as_role("restorer").holds()] == ["case 7"]
    for role in ("writer", "restorer"):
        assert not ROLES[role].allow("put", "holds/x/y")


def test_the_newest_complete_point_is_not_forgotten_by_hand(repository, points):
    with pytest.raises(ConflictError, match="newest complete one of filesystems"):
        operation.forget(repository, points[1].vm, points[1].session, "a mistake")

    operation.forget(repository, points[0].vm, points[0].session, "not needed")

    assert [one.session for one in again(repository).points()] == [points[1].session]
