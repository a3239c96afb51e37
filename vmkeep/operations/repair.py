"""Finds what is damaged in a repository, and stores it again from the fleet's copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.errors import InputError, VmkeepError
from vmkeep.fleet import PRIMARY
from vmkeep.operations import repositories
from vmkeep.repository.repair import repair

if TYPE_CHECKING:
    from vmkeep.fleet import FleetFile
    from vmkeep.repository import ScrubReport


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a repository."""

    found: ScrubReport
    """Before."""
    repaired: tuple[str, ...]
    """`vm/component of session`, with the copy it came from."""
    stored: int
    """Bytes that were stored again."""
    left: tuple[str, ...]
    """What is still damaged, and why each copy did not help."""


def mend(file: FleetFile, repository: str | None = None) -> Outcome:
    """Read back all that is stored, and repair what is damaged from the other repositories of the fleet.

    Args:
        repository: which of them is repaired, by the name of the copy; by default the repository itself.

    Raises:
        InputError: the fleet has no other.
    """
    target = repository or PRIMARY
    others = [name for name in (PRIMARY, *file.fleet.repository.copies) if name != target]
    if not others:
        raise InputError(f"{file.path}: there is no copy to repair from: say repository.copies")
    done: list[str] = []
    left: list[str] = []
    stored = 0
    with repositories.open_repository(file.at(repository)) as damaged:
        found = damaged.scrub()
        remaining = found.damages
        for name in others if remaining else ():
            left = []
            try:
                with repositories.open_repository(file.at(name)) as copy:
                    result = repair(damaged, copy, remaining, found.broken)
            except VmkeepError as error:
                left = [f"{name}: {error}"]
                continue
            done += [f"{what} from {name}" for what in result.components]
            stored += result.size
            left += [f"{name}: {why}" for why in result.left]
            remaining = tuple(
                each
                for each in remaining
                if f"{each.vm}/{each.place.component} of {each.session}" not in result.components
            )
    return Outcome(found, tuple(done), stored, tuple(left) if remaining else ())
