"""Damage in words that help: of a component that was saved as files, which files are concerned."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from vmkeep.components.files import CATALOGUE, CONTENT
from vmkeep.components.tree_restore import entries
from vmkeep.disks.file_tree import show
from vmkeep.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmkeep.repository import Damage, Point, Repository

_SHOWN: Final = 5
"""How many damaged places, and files of each, a message names."""


def told(repository: Repository, damages: Sequence[Damage]) -> str:
    """Return what is damaged in one sentence for each place, and what to do."""
    points: dict[tuple[str, str], Point] = {}
    lines = []
    for damage in damages[:_SHOWN]:
        key = (damage.vm, damage.session)
        if key not in points:
            points[key] = repository.point(*key)
        names = [*islice(files_of(repository, points[key], damage), _SHOWN)]
        lines.append(f"{damage} (in {', '.join(names)})" if names else str(damage))
    more = f"; and {len(damages) - _SHOWN} more places" if len(damages) > _SHOWN else ""
    return (
        f"stored data is damaged: {'; '.join(lines)}{more}. Restore what is not concerned, or an older "
        "recovery point, or from a copy (--repository)"
    )


def files_of(repository: Repository, point: Point, damage: Damage) -> Iterator[str]:
    """Yield the paths whose content lies in a damaged range; none for disks and other streams."""
    place = damage.place
    streams = point.components[place.component].streams
    if place.item != f"stream {CONTENT}" or CATALOGUE not in streams:
        return
    end = place.offset + place.length
    try:
        for entry in entries(repository, streams[CATALOGUE]):
            if any(start < end and start + length > place.offset for _, start, length in entry.extents):
                yield show(entry.path)
    except IntegrityError:  # the catalogue is damaged too, and is a place of its own
        return
