"""Which recovery points fit together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep import fleet as fleets
from vmkeep.errors import NotFoundError
from vmkeep.operations.choose import newest_cut
from vmkeep.repository import Point
from vmkeep.testing.site import FLEET

SITE = fleets.loads(FLEET).fleet


def point(vm, hour, run="r"):
    return Point(
        vm=vm, session=f"s{hour:02d}", run=f"{run}{hour}", fleet="site",
        taken=f"2026-01-01T{hour:02d}:00:00.000+00:00", sealed="", group=vm, consistency="powered-off",
        definition="", components={},
    )  # fmt: skip


def test_the_newest_points_are_chosen_when_they_fit():
    cut = newest_cut(SITE, {"db1": [point("db1", 1), point("db1", 3)], "app1": [point("app1", 2)]})

    assert {vm: one.session for vm, one in cut.items()} == {"db1": "s03", "app1": "s02"}


def test_a_dependent_is_never_newer_than_what_it_depends_on():
    cut = newest_cut(
        SITE,
        {"db1": [point("db1", 1), point("db1", 2)], "app1": [point("app1", 1), point("app1", 5, "other")]},
    )

    assert cut["app1"].session == "s01"


def test_points_of_one_run_fit_together():
    newer = point("app1", 9)
    cut = newest_cut(SITE, {"db1": [point("db1", 9)], "app1": [newer]})

    assert cut["app1"] is newer


def test_a_dependent_with_newer_points_only_is_refused():
    with pytest.raises(NotFoundError, match="all are newer"):
        newest_cut(SITE, {"db1": [point("db1", 1)], "app1": [point("app1", 2, "other")]})


def test_a_point_that_a_person_named_is_not_questioned():
    named = point("app1", 2, "other")

    cut = newest_cut(SITE, {"db1": [point("db1", 1)], "app1": [named]}, frozenset({"app1"}))

    assert cut["app1"] is named


@given(st.sets(st.integers(0, 23), min_size=1), st.sets(st.integers(0, 23), min_size=1))
def test_every_cut_is_consistent(database, application):
    candidates = {
        "db1": [point("db1", hour) for hour in sorted(database)],
        "app1": [point("app1", hour) for hour in sorted(application)],
    }
    try:
        cut = newest_cut(SITE, candidates)
    except NotFoundError:
        assert min(application) > max(database)
    else:
        assert cut["app1"].taken <= cut["db1"].taken
