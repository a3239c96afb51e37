"""When backups may begin, by the clocks of the places that the windows name."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.errors import FleetError
from vmkeep.fleet import loads
from vmkeep.fleet.model import Window
from vmkeep.fleet.windows import next_opening, opening

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = {"night": Window(start="22:00", end="05:00", timezone="Europe/Berlin")}
FLEET = """\
version: 1
fleet: site
repository: {store: ./repository, key: {file: ./key}}
hypervisors: {shelf: {driver: images, path: ./images}}
vms: {db1: {hypervisor: shelf, disks: [{name: root, size: 8MiB}]}}
windows: {night: {start: "22:00", end: "05:00", timezone: Europe/Berlin}}
schedules: {backup: {cron: "0 1 * * *", timezone: Europe/Berlin}}
"""


def at(text, zone=BERLIN):
    return datetime.fromisoformat(text).replace(tzinfo=zone)


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [("21:59", False), ("22:00", True), ("23:30", True), ("00:00", True), ("04:59", True), ("05:00", False)],
)
def test_a_window_reaches_into_the_next_day(moment, is_open):
    assert (opening(NIGHT, at(f"2026-11-24T{moment}")) is not None) == is_open


def test_it_is_open_by_its_own_clock_whatever_clock_one_asks_by():
    assert opening(NIGHT, datetime(2026, 11, 24, 21, 30, tzinfo=UTC)) is not None
    assert opening(NIGHT, datetime(2026, 7, 24, 20, 30, tzinfo=UTC)) is not None
    assert opening(NIGHT, datetime(2026, 11, 24, 20, 30, tzinfo=UTC)) is None
    assert opening(NIGHT, at("2026-11-25T06:00", ZoneInfo("Asia/Tokyo"))) is not None


def test_of_several_the_one_that_closes_last_is_told():
    both = NIGHT | {"late": Window(start="04:00", end="07:00", timezone="Europe/Berlin")}

    assert [opening(both, at(f"2026-11-24T{hour}")).name for hour in ("03:00", "04:30", "06:00")] == [
        "night", "late", "late",
    ]  # fmt: skip


def test_the_next_one_is_told_with_its_day_and_zone():
    assert str(next_opening(NIGHT, at("2026-11-24T12:00"))) == "night, 2026-11-24 22:00 to 05:00 CET"
    assert str(next_opening(NIGHT, at("2026-11-24T23:00"))) == "night, 2026-11-25 22:00 to 05:00 CET"


@pytest.mark.parametrize(
    ("day", "hours"),
    [("2026-03-28", 6), ("2026-10-24", 8), ("2026-11-24", 7)],
    ids=["short", "long", "usual"],
)
def test_a_night_in_which_the_clocks_change_is_as_long_as_it_is(day, hours):
    found = next_opening(NIGHT, at(f"{day}T12:00"))

    assert found.closes.astimezone(UTC) - found.opens.astimezone(UTC) == timedelta(hours=hours)


@given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_the_next_opening_is_when_it_opens(moment):
    found = next_opening(NIGHT, moment)

    assert opening(NIGHT, found.opens) == found
    assert opening(NIGHT, found.opens - timedelta(seconds=1)) is None
    assert found.opens - moment <= timedelta(hours=25)


@pytest.mark.parametrize("cron", ["0 1 * * *", "0 22 * * 1-5", "*/30 0-4 * * *", "59 4 1 * *"])
def test_a_schedule_within_a_window_is_right(cron):
    loads(FLEET.replace("0 1 * * *", cron))


@pytest.mark.parametrize(
    ("cron", "when"), [("0 6 * * *", "06:00"), ("0 */6 * * *", "06:00"), ("0 5 * * *", "05:00")]
)
def test_a_schedule_that_fires_while_no_window_is_open_is_told_by_the_fleet_file(cron, when):
    with pytest.raises(
        FleetError, match=rf"schedules.backup.cron: fires at {when} Europe/Berlin, when no window"
    ):
        loads(FLEET.replace("0 1 * * *", cron))


def test_so_it_is_when_they_are_right_in_winter_only():
    text = FLEET.replace('"0 1 * * *", timezone: Europe/Berlin', '"30 3 * * *", timezone: UTC')

    with pytest.raises(FleetError, match="fires at 03:30 UTC"):
        loads(text)
