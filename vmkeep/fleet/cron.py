"""Cron expressions: five fields, checked so that a schedule that exists can fire.

See: crontab(5). Lists, ranges, steps and English names; no `@daily`, no `L`, `W`, `#`.
"""

from __future__ import annotations

import re
from typing import Final

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: Final[tuple[tuple[str, int, int, dict[str, int]], ...]] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_LONGEST: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART: Final = re.compile(r"(?P<first>\*|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\d+))?", re.ASCII)


def problem(cron: str) -> str | None:
    """Say what is wrong with *cron*, or return `None`."""
    fields = cron.split()
    if len(fields) != len(_FIELDS):
        names = ", ".join(name for name, *_ in _FIELDS)
        return f"{cron!r} has {len(fields)} fields; cron has five: {names}, for example '0 1 * * *'"
    values = []
    for text, (name, low, high, names_of) in zip(fields, _FIELDS, strict=True):
        numbers = _numbers(text.lower(), low, high, names_of)
        if numbers is None:
            return f"{text!r} is no {name}: write {low}-{high}, '*', a list 1,2, a range 1-5 or a step */15"
        values.append(numbers)
    _, _, days, months, _ = values
    if fields[4] == "*" and min(days) > max(_LONGEST[month - 1] for month in months):
        return f"{cron!r} never comes: none of its months has a day {min(days)}"
    return None


def times(cron: str) -> list[tuple[int, int]]:
    """Return the hours and minutes at which a cron expression fires, on its days; it has no problem."""
    minutes, hours = (
        sorted(_numbers(text.lower(), low, high, names) or ())
        for text, (_, low, high, names) in zip(cron.split()[:2], _FIELDS, strict=False)
    )
    return [(hour, minute) for hour in hours for minute in minutes]


def _numbers(text: str, low: int, high: int, names: dict[str, int]) -> set[int] | None:
    """Return the numbers that a field stands for, or `None` when it is no field."""
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            return None
        first, last, step = match["first"], match["last"], int(match["step"] or 1)
        if first == "*":
            begin, end = (low, high) if last is None else (1, 0)
        else:
            begin = _number(first, names)
            end = _number(last, names) if last else high if match["step"] else begin
        if not (low <= begin <= end <= high and step >= 1):
            return None
        found.update(range(begin, end + 1, step))
    return found


def _number(text: str, names: dict[str, int]) -> int:
    return names.get(text, int(text) if text.isdigit() else -1)
