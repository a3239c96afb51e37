"""Which recovery points of one VM are kept, and why.

No clock is asked: a rule counts hours, days, ... that *have* a point, so a fleet that was not backed up for a
year loses nothing by that. A point pushes another out only if it is complete and has all that the other has:

    newest   os + db    complete
             db         complete: only the database was asked for; pushes out no point with an os
             os         partial, lacks db: counts for no rule
    oldest   os + db    complete

Where components of a kind have rules of their own, each kind is looked at as if there were nothing else in
the points, and a point stays if one of them keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import tzinfo

LAST: Final = "last"
_NEWEST: Final = "newest complete point"
_NO_BETTER: Final = "no newer complete point"


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
    """Sorts in the order in which points were saved; `taken` does not where a clock was not right."""
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


def decide(
    points: Iterable[Candidate],
    policy: Policy,
    zone: tzinfo = UTC,
    kinds: Mapping[str, Policy] | None = None,
) -> list[Verdict]:
    """Return what is decided about each point of one VM, oldest first.

    Deciding again about those that are kept keeps all of them. The newest complete point that holds certain
    components is always kept.

    Args:
        zone: where days, weeks, months and years begin.
        kinds: by kind of component, what counts for it instead of *policy*.
    """
    newest_first = sorted(points, key=lambda point: point.session, reverse=True)
    found: dict[str, list[str]] = {point.session: [] for point in newest_first}
    for label, its_policy, parts in _by_kind(newest_first, policy, kinds or {}):
        for number, point in enumerate(parts):
            for reason in _reasons(point, parts[:number], its_policy, zone):
                found[point.session].append(f"{label}{reason}")
    if kinds:  # whole points, too: parts of several newer ones are of several moments
        for number, point in enumerate(newest_first):
            found[point.session] += _never_forgotten(point, _covering(point, newest_first[:number]))
    return [Verdict(point, tuple(dict.fromkeys(found[point.session]))) for point in reversed(newest_first)]


def _by_kind(
    newest_first: Sequence[Candidate], policy: Policy, kinds: Mapping[str, Policy]
) -> Iterator[tuple[str, Policy, list[Candidate]]]:
    """Yield what to begin reasons with, a policy, and the points as if they held only what it is for."""
    if not kinds:
        yield "", policy, [*newest_first]
        return
    groups: dict[str | None, list[Candidate]] = {None: [], **{name: [] for name in kinds}}
    for point in newest_first:
        for group, parts in groups.items():
            components = frozenset(one for one in point.components if _group(one, kinds) == group)
            if components:
                parts.append(replace(point, components=components))
    for group, parts in groups.items():
        yield f"{group} " if group else "", kinds[group] if group else policy, parts


def _group(component: str, kinds: Mapping[str, Policy]) -> str | None:
    kind = component.partition(".")[0]
    return kind if kind in kinds else None


def _covering(point: Candidate, newer: Sequence[Candidate]) -> list[Candidate]:
    return [other for other in newer if other.complete and other.components >= point.components]


def _never_forgotten(point: Candidate, covering: Sequence[Candidate]) -> Iterator[str]:
    if not covering:
        yield _NEWEST if point.complete else _NO_BETTER


def _reasons(point: Candidate, newer: Sequence[Candidate], policy: Policy, zone: tzinfo) -> Iterable[str]:
    """Yield why *point* is kept; *newer* are all points behind it, newest first."""
    covering = _covering(point, newer)
    if len(covering) < policy.last:
        yield LAST
    if not point.complete:
        yield from _never_forgotten(point, covering)
        return
    for name, period in _PERIODS.items():
        taken = {period(other.taken.astimezone(zone)) for other in covering}
        if len(taken) < getattr(policy, name) and period(point.taken.astimezone(zone)) not in taken:
            yield name
    yield from _never_forgotten(point, covering)


_PERIODS: Final[dict[str, Callable[[datetime], tuple[int, ...]]]] = {
    # In UTC, an hour that a clock shows twice in autumn would be one.
    "hourly": lambda time: (int(time.timestamp() // 3600),),
    "daily": lambda time: (time.year, time.month, time.day),
    "weekly": lambda time: time.isocalendar()[:2],
    "monthly": lambda time: (time.year, time.month),
    "yearly": lambda time: (time.year,),
}
