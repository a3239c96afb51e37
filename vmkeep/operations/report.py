"""What a step did, and how a run ended: values that both engines hand to people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmkeep.errors import IntegrityError, PartialError, VmkeepError
from vmkeep.planning import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmkeep.planning import Outcome, Plan, Summary
    from vmkeep.planning.drilled import DrillResult


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did."""

    text: str = ""
    """One line for people."""
    read: int = 0
    """Bytes read from, or written to, the VM."""
    new: int = 0
    """Bytes of these that the repository did not have yet."""
    stored: int = 0
    """Bytes that were new to the repository, as stored."""
    freed: int = 0
    """Bytes of the packs that were deleted."""
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run ended."""

    run: str
    operation: str
    plan: Plan
    summary: Summary
    outcomes: Mapping[str, Outcome]
    steps: Mapping[str, StepReport]
    seconds: Mapping[str, float]
    """Wall time of each step that ran."""
    elapsed: float
    after: Mapping[str, float] = field(default_factory=dict)
    """Seconds from the begin of the run to the end of each step that ran."""
    errors: Mapping[str, BaseException] = field(default_factory=dict)
    trouble: str | None = None
    """Why the run's record could not be written, if so; the recovery points are not affected."""
    drill: DrillResult | None = None
    """What a drill found out."""

    @property
    def exit_code(self) -> int:
        """0 all succeeded; 4 stored data is damaged; 3 partial; otherwise what the first failure says."""
        if self.summary.complete:
            return PartialError.exit_code if self.drill is not None and self.drill.missed else 0
        if any(isinstance(error, IntegrityError) for error in self.errors.values()):
            return IntegrityError.exit_code  # more urgent than what was done all the same
        ended = {"configure": {"configure"}, "drill": set()}.get(
            self.operation, {"seal", "health", "verify", "prune"}
        )
        goals = [step for step in self.plan.steps if step.split(" ", 1)[0] in ended]
        if any(isinstance(error, PartialError) for error in self.errors.values()) or any(
            step in self.outcomes and self.outcomes[step].state is State.SUCCEEDED for step in goals
        ):
            return PartialError.exit_code
        codes = [error.exit_code for error in self.errors.values() if isinstance(error, VmkeepError)]
        return codes[0] if codes else 1
