"""What was asked for: all that a run needs to be carried out, and carried out again, as a value."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vmkeep.errors import InputError
from vmkeep.repository.collect import DEAD_AFTER

Operation = Literal["configure", "backup", "restore", "drill", "verify", "copy", "prune"]


class Request(BaseModel):
    """An operation on (a part of) a fleet. Kept as JSON in the run's directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: Operation
    fleet: Path
    """The fleet file."""
    targets: tuple[str, ...] = ()
    """`vm`, `vm/kind` or `vm/kind.name`; none means all."""
    kinds: tuple[str, ...] = ()
    """Component kinds; none means all."""
    at: datetime | None = None
    """Restore the state of this time: nothing taken later is used."""
    points: dict[str, str] = {}
    """VM to session: the recovery points to restore or verify; chosen by `at` when not said."""
    rename: dict[str, str] = {}
    """VM to the name it is restored under."""
    disks: tuple[str, ...] = ()
    """Restore only these whole disks, into VMs that exist; none means all that is selected."""
    networks: dict[str, str] = {}
    """Restore onto other networks: the new one by the one that a VM was on."""
    storage: str | None = None
    """Where the disks of restored VMs are made; by default where they were."""
    hypervisors: tuple[str, ...] = ()
    """Restore to these hypervisors of the fleet file; none means each VM to its own."""
    placed: dict[str, str] = {}
    """VM to hypervisor: on which of them it is restored, as it was decided when the run began."""
    instant: bool = False
    """Restore VMs so that they run at once, and their data streams in behind them; a drill does so where it
    can, and never copies the data."""
    bandwidth: Annotated[int, Field(ge=0)] = 0
    """Bytes a second that stream into each disk then; 0: as fast as it goes."""
    overwrite: bool = False
    """Whether a VM that exists may be replaced."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of the stored bytes that `verify` reads."""
    packs: bool = False
    """Verify all that the repository holds, instead of recovery points."""
    repository: str | None = None
    """The copy to restore, verify or prune in, or `primary`; a restore otherwise takes the best."""
    dead_after: Annotated[float, Field(ge=0)] = DEAD_AFTER.total_seconds()
    """Seconds after which `prune` takes a session for dead that has not ended."""
    copies: tuple[str, ...] = ()
    """Where to copy to; none means all copies."""
    any_time: bool = False
    """Back up also while no window of the fleet is open."""
    dependencies: bool = False
    """Restore also all that the targets depend on."""

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, given: Any) -> Any:
        """Take what was kept when a restore could name one hypervisor only, and did not."""
        if isinstance(given, dict) and given.get("hypervisor", "") is None:
            return {key: value for key, value in given.items() if key != "hypervisor"}
        return given

    def aware(self) -> datetime | None:
        """Return `at` as UTC; a time without a zone is local time."""
        return None if self.at is None else self.at.astimezone(UTC)


def parse_pairs(pairs: list[str], *, option: str, example: str = "db1=db1-copy") -> dict[str, str]:
    """Return *pairs* such as ``db1=db1-copy`` as a mapping.

    Raises:
        InputError: one has no ``=``, or something is named twice.
    """
    parsed: dict[str, str] = {}
    for pair in pairs:
        left, equals, right = pair.partition("=")
        if not (left and equals and right):
            raise InputError(f"{option} {pair!r}: write NAME=VALUE, for example {option} {example}")
        if left in parsed:
            raise InputError(f"{option}: {left} is named twice")
        parsed[left] = right
    return parsed
