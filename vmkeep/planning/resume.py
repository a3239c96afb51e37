"""What a second run of a plan need not repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.planning.execution import State
from vmkeep.planning.step import Verb

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from vmkeep.planning.execution import Outcome
    from vmkeep.planning.plan import Plan
    from vmkeep.planning.step import Step


def still_done(
    plan: Plan, outcomes: Mapping[str, Outcome], undecided: Collection[str] = ()
) -> frozenset[str]:
    """Return the steps of an earlier run whose work still counts.

    Args:
        undecided: the VMs whose session is known to be open still, although `seal` was tried.

    A step that succeeded is repeated all the same if a step before it is, or if what it made is gone:

    - a snapshot after `release`: a `backup` that is still missing needs a new one, and then the group's
      other backups are repeated too, for they must show the same moment;
    - all of a drill: what it restored is torn down in any case;
    - what was saved for a VM after a `seal` that missed something: the session is decided, and the rest
      goes into a new one. Where the run was killed before `seal`, only what is missing is repeated.
    """
    if plan.operation == "drill":
        return frozenset()
    done = {
        name for name, outcome in outcomes.items() if outcome.state is State.SUCCEEDED and name in plan.steps
    }
    while repeated := {name for name in done if _repeated(plan, outcomes, undecided, done, plan.steps[name])}:
        done -= repeated
    return frozenset(done)


def _repeated(
    plan: Plan, outcomes: Mapping[str, Outcome], undecided: Collection[str], done: set[str], step: Step
) -> bool:
    if any(before not in done for before in plan.graph.predecessors(step.id)):
        return True
    behind = [plan.steps[name] for name in plan.graph.successors(step.id)]
    if step.verb is Verb.SNAPSHOT:
        released = any(one.verb is Verb.RELEASE and one.id in outcomes for one in behind)
        return released and any(step.id in one.needs and one.id not in done for one in behind)
    if step.verb in {Verb.BACKUP, Verb.UPLOAD} and step.vms[0] not in undecided:
        seal = plan.steps.get(f"seal {step.vms[0]}")
        return seal is not None and seal.id in outcomes and not seal.after <= done
    return False
