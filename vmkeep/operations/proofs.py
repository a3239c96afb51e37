"""Which recovery points drills have proven, and when: `last proven bootable`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.errors import IntegrityError

if TYPE_CHECKING:
    from vmkeep.repository import Repository


@dataclass(frozen=True, slots=True)
class Proof:
    """The last drill in which a recovery point came back."""

    drill: str
    when: str
    """UTC, ISO 8601."""
    booted: bool
    """Whether it was started and passed its gates; otherwise its images were checked as they lie."""
    checks: int
    """How much was found to be right: gates, or what was looked at in images."""
    seconds: float
    """From the begin of that drill until it was healthy."""

    @property
    def how(self) -> str:
        """`booted`, `checked` as it lies, or `restored` where nothing can be checked."""
        if self.booted:
            return "booted"
        return "checked" if self.checks else "restored"


def proven_by_drills(repository: Repository) -> dict[str, Proof]:
    """Return the last proof of each recovery point that has one, by session.

    Raises:
        IntegrityError: the record of a drill is damaged.
    """
    proven: dict[str, Proof] = {}
    for drill, record in repository.drills().items():
        try:
            for one in record["vms"].values():
                if one["passed"]:
                    proven[one["session"]] = Proof(
                        drill, record["ended"], one["booted"], one["checks"], one["seconds"]
                    )
        except KeyError as error:
            raise IntegrityError(f"the record of drill {drill} is malformed: it has no {error}") from error
    return proven
