"""What retention keeps: what its rules name, never too little, and the same when it is asked again."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.planning.retention import Candidate, Policy, decide

BEGUN = datetime(2026, 1, 1, 1, tzinfo=UTC)
RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def taken(time, components="os", *, complete=True):
    return Candidate(f"{time:%Y%m%dT%H%M%S}", time, frozenset(components.split()), complete)


def every(step, count, components="os"):
    return [taken(BEGUN + number * step, components) for number in range(count)]


def kept(points, zone=UTC, **rules):
    return [verdict.point for verdict in decide(points, Policy(**rules), zone) if verdict.kept]


policies = st.builds(Policy, **{name: st.integers(0, 4) for name in RULES})
histories = st.lists(
    st.builds(
        lambda hours, components, complete: taken(
            BEGUN + timedelta(hours=hours), " ".join(components), complete=complete
        ),
        st.integers(0, 20_000),
        st.sets(st.sampled_from(["os", "db"]), min_size=1).map(sorted),
        st.booleans(),
    ),
    max_size=25,
    unique_by=lambda point: point.session,
)


kinds = st.dictionaries(st.sampled_from(["os", "db"]), policies)


@given(histories, policies, kinds)
def test_whatever_kinds_want_nothing_that_is_needed_is_forgotten(points, policy, kinds):
    complete = [point for point in points if point.complete]

    once = [verdict.point for verdict in decide(points, policy, kinds=kinds) if verdict.kept]

    assert not complete or max(complete, key=lambda point: point.taken) in once
    assert all(verdict.kept for verdict in decide(once, policy, kinds=kinds))
    for verdict in decide(points, policy, kinds=kinds):
        covered = any(
            one.taken > verdict.point.taken and one.components >= verdict.point.components for one in complete
        )
        assert verdict.kept or covered


def test_components_of_a_kind_have_an_age_of_their_own():
    whole = every(timedelta(days=1), 3, "os db.a")
    dumps = [taken(BEGUN + timedelta(days=2, hours=number), "db.a") for number in range(1, 6)]

    found = decide([*whole, *dumps], Policy(daily=2), kinds={"db": Policy(hourly=3)})

    assert [bool(verdict.reasons) for verdict in found] == [False, True, True, False, False, True, True, True]
    assert found[2].reasons == ("daily", "newest complete point")
    assert found[-1].reasons == ("db hourly", "db newest complete point", "newest complete point")


@given(histories, policies)
def test_asked_again_it_forgets_nothing_more(points, policy):
    once = [verdict.point for verdict in decide(points, policy) if verdict.kept]

    assert all(verdict.kept for verdict in decide(once, policy))


@given(histories, policies)
def test_the_newest_complete_point_is_never_forgotten(points, policy):
    complete = [point for point in points if point.complete]

    left = [verdict.point for verdict in decide(points, policy) if verdict.kept]

    assert not complete or max(complete, key=lambda point: point.taken) in left


@given(histories, policies)
def test_what_is_forgotten_is_all_in_a_newer_complete_point_that_is_kept(points, policy):
    verdicts = decide(points, policy)
    good = [verdict.point for verdict in verdicts if verdict.kept and verdict.point.complete]

    for forgotten in (verdict.point for verdict in verdicts if not verdict.kept):
        assert any(each.taken > forgotten.taken and each.components >= forgotten.components for each in good)


@given(histories, policies)
def test_partial_points_change_nothing_for_complete_ones(points, policy):
    complete = [point for point in points if point.complete]

    with_partial = [verdict for verdict in decide(points, policy) if verdict.point.complete]

    assert with_partial == decide(complete, policy)


@given(histories, policies, policies)
def test_a_wider_policy_keeps_all_that_a_narrower_one_keeps(points, one, other):
    wider = Policy(**{name: max(getattr(one, name), getattr(other, name)) for name in RULES})

    for narrow, wide in zip(decide(points, one), decide(points, wider), strict=True):
        assert set(narrow.reasons) <= set(wide.reasons)


def test_last_keeps_the_newest_whatever_their_age():
    points = every(timedelta(days=400), 5)

    assert kept(points, last=3) == points[2:]


@pytest.mark.parametrize(("rule", "step"), [("hourly", timedelta(minutes=20)), ("daily", timedelta(hours=8))])
def test_the_newest_of_each_period_is_kept(rule, step):
    points = every(step, 3 * 10)

    found = kept(points, **{rule: 4})

    assert len(found) == 4
    assert {later.taken - earlier.taken for earlier, later in pairwise(found)} == {3 * step}
    assert found[-1] == points[-1]


def test_weeks_begin_on_monday_also_across_the_new_year():
    points = every(timedelta(days=1), 12)  # from Thursday, the first of January

    assert [f"{point.taken:%a %d}" for point in kept(points, weekly=3)] == ["Sun 04", "Sun 11", "Mon 12"]


def test_months_and_years_are_kept_beside_each_other():
    points = every(timedelta(days=1), 500)

    found = [f"{point.taken:%Y-%m-%d}" for point in kept(points, monthly=2, yearly=2)]

    assert found == ["2026-12-31", "2027-04-30", "2027-05-15"]


def test_days_begin_where_the_schedule_is():
    late, early = (taken(datetime(2026, 3, 1, hour, tzinfo=UTC)) for hour in (22, 23))

    assert kept([late, early], daily=5) == [early]
    assert kept([late, early], ZoneInfo("Europe/Berlin"), daily=5) == [late, early]


def test_an_hour_that_the_clock_shows_twice_is_two_hours():
    points = [taken(datetime(2026, 10, 25, hour, 30, tzinfo=UTC)) for hour in (0, 1)]

    assert kept(points, ZoneInfo("Europe/Berlin"), hourly=5) == points


def test_a_backup_of_one_component_does_not_push_out_whole_ones():
    whole, parts = every(timedelta(days=1), 3, "os db"), every(timedelta(hours=1), 9, "db")

    assert set(whole) <= set(
        kept([*whole, *(taken(one.taken + timedelta(days=9), "db") for one in parts)], last=3)
    )


def test_a_component_that_was_added_lets_older_points_age():
    old, new = every(timedelta(days=1), 3), [taken(BEGUN + timedelta(days=9), "os db")]

    assert kept([*old, *new], last=1) == new


def test_a_partial_point_is_forgotten_once_enough_newer_ones_are_complete():
    partial = taken(BEGUN, complete=False)
    newer = [taken(BEGUN + timedelta(days=day)) for day in (1, 2)]

    assert partial in kept([partial], daily=7)
    assert partial in kept([partial, newer[0]], last=2)
    assert partial not in kept([partial, *newer], last=2)
    assert partial not in kept([partial, newer[0]], daily=7)


def test_each_point_says_why_it_is_kept():
    points = every(timedelta(days=1), 3)

    reasons = [verdict.reasons for verdict in decide(points, Policy(last=1, daily=2))]

    assert reasons == [(), ("daily",), ("last", "daily", "newest complete point")]
