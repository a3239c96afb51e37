"""No backup begins outside of the fleet's windows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkeep.errors import InputError
from vmkeep.fleet.windows import next_opening, opening
from vmkeep.planning import Verb

if TYPE_CHECKING:
    from vmkeep.fleet import Fleet
    from vmkeep.operations.request import Request
    from vmkeep.planning import Schedule


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def too_late(fleet: Fleet, schedule: Schedule) -> str | None:
    """Say what of a backup would come too late, if it began now, or when the next window opens."""
    if not fleet.windows:
        return None
    moment = now()
    window = opening(fleet.windows, moment) or next_opening(fleet.windows, moment)
    begin = max(moment.astimezone(window.opens.tzinfo), window.opens)
    left = (window.closes - begin).total_seconds()
    snapshots = [slot for slot in schedule.slots if slot.step.verb is Verb.SNAPSHOT]
    late = [slot.step.id.partition(" ")[2] for slot in snapshots if slot.start >= left]
    if not late:
        return None
    return (
        f"begun at {begin:%H:%M %Z}, {len(late)} of {len(snapshots)} snapshots would come too late for "
        f"window {window}, and be left out: {', '.join(late)}"
    )


def require_open(fleet: Fleet, request: Request) -> None:
    """Check that a backup may begin now.

    Raises:
        InputError: no window is open; says which opens next.
    """
    moment = now()
    if request.any_time or not fleet.windows or opening(fleet.windows, moment) is not None:
        return
    raise InputError(
        f"no window for backups is open now; the next is {next_opening(fleet.windows, moment)}: wait for it, "
        "or say --any-time"
    )
