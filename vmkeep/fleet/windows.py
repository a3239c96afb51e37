"""When backups may begin: hours of the day, in the time zone that their window names."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmkeep.fleet.model import Window

_DAYS = (-1, 0, 1, 2)
"""Which days' windows concern a moment: one may reach into the next day, and zones are up to a day apart."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A window on a certain day."""

    name: str
    opens: datetime
    closes: datetime
    """Not open any more at this moment."""

    def __str__(self) -> str:
        return f"{self.name}, {self.opens:%Y-%m-%d %H:%M} to {self.closes:%H:%M} {self.closes:%Z}"


def opening(windows: Mapping[str, Window], moment: datetime) -> Opening | None:
    """Return the window that is open at *moment*; of several the one that closes last."""
    found = [one for one in _near(windows, moment) if one.opens <= moment < one.closes]
    return max(found, key=lambda one: one.closes, default=None)


def next_opening(windows: Mapping[str, Window], moment: datetime) -> Opening:
    """Return the window that opens first after *moment*.

    Raises:
        ValueError: there are no windows.
    """
    return min((one for one in _near(windows, moment) if one.opens > moment), key=lambda one: one.opens)


def _near(windows: Mapping[str, Window], moment: datetime) -> Iterator[Opening]:
    for name, window in windows.items():
        zone = ZoneInfo(window.timezone)
        start, end = (datetime.strptime(text, "%H:%M").time() for text in (window.start, window.end))  # noqa: DTZ007
        for days in _DAYS:
            day = moment.astimezone(zone).date() + timedelta(days)
            last = day + timedelta(1) if end <= start else day
            opens = datetime.combine(day, start, zone)
            closes = datetime.combine(last, end, zone)
            # By way of UTC: an hour that the clocks skip or repeat is otherwise compared by its digits.
            if opens.astimezone(UTC) < closes.astimezone(UTC):
                yield Opening(
                    name, opens.astimezone(UTC).astimezone(zone), closes.astimezone(UTC).astimezone(zone)
                )
