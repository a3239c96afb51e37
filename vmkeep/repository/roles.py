"""What each role does in a store: by this the least privilege of its credentials is made.

A role is what a program is run for, with credentials of its own: the machine that backs up every night
should be unable to delete or to read what it saved. Whoever makes the repository and its key slots has all
rights, and needs them for a minute only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmkeep.repository import layout

_PROBE: Final = "probe/"
COLLECTOR: Final = "collector"
UNLOCKED: Final = (layout.OPEN, _PROBE, layout.VERIFIED, layout.DRILLS)
"""What is lost without harm, and mostly deleted soon: it is never locked."""


@dataclass(frozen=True, slots=True)
class Rights:
    """The objects that may be read, made and deleted: names of objects, or beginnings that end in `/`.

    All roles may list all names. No role may put an object that exists.
    """

    read: tuple[str, ...]
    put: tuple[str, ...]
    delete: tuple[str, ...] = ()

    def allow(self, verb: str, key: str) -> bool:
        """Tell whether *verb* (`get`, `put`, `delete` or `list`) may be done to *key*."""
        if verb == "list":
            return True
        allowed = {"get": self.read, "put": self.put, "delete": self.delete}[verb]
        return any(key.startswith(one) if one.endswith("/") else key == one for one in allowed)


_OPENING: Final = (layout.FORMAT, layout.KEYS)
_DECISIONS: Final = (
    layout.INDEX, layout.POINTS, layout.REPACKED, layout.FORGOTTEN, layout.HOLDS, layout.COLLECTIONS,
)  # fmt: skip

EXTENDED: Final = (
    layout.FORMAT, layout.KEYS, layout.INDEX, layout.POINTS, layout.REPACKED, layout.HOLDS, layout.PACKS,
)  # fmt: skip
"""What the collector locks on where objects are locked."""

ROLES: Final = {
    # It must know what is stored already and what the last points hold, but never the data itself.
    # It cannot forget a point either: a tombstone is put by the collector.
    "writer": Rights(
        read=(*_OPENING, *_DECISIONS, layout.RUNS, layout.DRILLS, layout.VERIFIED, _PROBE),
        put=(layout.OPEN, layout.PACKS, layout.INDEX, layout.POINTS, layout.RUNS, _PROBE),
    ),
    # It reads packs for the leaves of trees, puts VOID at the decisions of the dead, and tombstones. It puts
    # packs and an index where it rewrites those of which little is needed.
    COLLECTOR: Rights(
        read=(
            *_OPENING,
            *_DECISIONS,
            layout.OPEN,
            layout.PACKS,
            layout.RUNS,
            layout.DRILLS,
            layout.VERIFIED,
        ),
        put=(
            layout.OPEN,
            layout.PACKS,
            layout.INDEX,
            layout.POINTS,
            layout.REPACKED,
            layout.FORGOTTEN,
            layout.HOLDS,
            layout.COLLECTIONS,
        ),
        delete=(
            layout.OPEN,
            layout.PACKS,
            layout.INDEX,
            layout.POINTS,
            layout.REPACKED,
            layout.VERIFIED,
        ),
    ),
    # While it reads it may say so, and what it read back or a drill proved. It cannot delete that again:
    # whoever can, could also delete the record of a backup under way, and a collector would take its packs
    # for nobody's.
    "restorer": Rights(
        read=(*_OPENING, *_DECISIONS, layout.PACKS, layout.RUNS, layout.DRILLS, layout.VERIFIED),
        put=(layout.OPEN, layout.DRILLS, layout.VERIFIED),
    ),
}
