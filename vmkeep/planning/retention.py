"""Which recovery points of one VM are kept, and why.

No clock is asked: a rule counts hours, days, ... that *have* a point, so a fleet that was not backed up for a
year loses nothing by that. A point pushes another out only if it is complete and has all that the other has:

    newest   os + db    complete
             db         complete: only the database was asked for; pushes out no point with an os
             os         partial, lacks db: counts for no rule
    oldest   os + db    complete
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import tzinfo

LAST: Final = "last"


@dataclass(frozen=True, slots=True)
class Policy:
    """How many points of each age to keep."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recovery point, as far as retention asks."""

    session: str
    taken: datetime
    """With a time zone."""
    components: frozenset[str]
    """What is in it."""
    complete: bool
    """Whether all that was asked for is in it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is decided about a point."""

    point: Candidate
    reasons: tuple[str, ...] = field(default=())
    """Why it is kept, the names of the rules first; empty: it is forgotten."""

    @property
    def kept(self) -> bool:
        """Whether the point stays."""
        return bool(self.reasons)


def decide(points: Iterable[Candidate], policy: Policy, zone: tzinfo = UTC) -> list[Verdict]:
    """Return what is decided about each point of one VM, oldest first.

    Deciding again about those that are kept keeps all of them. The newest complete point that holds certain
    components is always kept.

    Args:
        zone: where days, weeks, months and years begin.
    """
    newest_first = sorted(points, key=lambda point: (point.taken, point.session), reverse=True)
    verdicts = [
        Verdict(point, tuple(_reasons(point, newest_first[:number], policy, zone)))
        for number, point in enumerate(newest_first)
    ]
    return verdicts[::-1]


def _reasons(point: Candidate, newer: Sequence[Candidate], policy: Policy, zone: tzinfo) -> Iterable[str]:
    """Yield why *point* is kept; *newer* are all points behind it, newest first."""
    covering = [other for other in newer if other.complete and other.components >= point.components]
    if len(covering) < policy.last:
        yield LAST
    if not point.complete:
        if not covering:
            yield "no newer complete point"
        return
    for name, period in _PERIODS.items():
        taken = {period(other.taken.astimezone(zone)) for other in covering}
        if len(taken) < getattr(policy, name) and period(point.taken.astimezone(zone)) not in taken:
            yield name
    if not covering:
        yield "newest complete point"


_PERIODS: Final[dict[str, Callable[[datetime], tuple[int, ...]]]] = {
    # In UTC, an hour that a clock shows twice in autumn would be one.
    "hourly": lambda time: (int(time.timestamp() // 3600),),
    "daily": lambda time: (time.year, time.month, time.day),
    "weekly": lambda time: time.isocalendar()[:2],
    "monthly": lambda time: (time.year, time.month),
    "yearly": lambda time: (time.year,),
}
