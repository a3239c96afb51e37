"""What a second run of a plan need not repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.planning.execution import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmkeep.planning.execution import Outcome
    from vmkeep.planning.plan import Plan


def still_done(plan: Plan, outcomes: Mapping[str, Outcome]) -> frozenset[str]:
    """Return the steps of an earlier run whose work still counts.

    A step that succeeded is repeated all the same if a step before it is, or if what it made is gone
    and wanted: after `release` a snapshot is gone, so a failed `backup` has to take a new one, and then
    its group's other backups are repeated too, for they must show the same moment. A failed `upload`
    repeats only itself: it reads the spool, not the snapshot.
    """
    done = {
        name for name, outcome in outcomes.items() if outcome.state is State.SUCCEEDED and name in plan.steps
    }
    while repeated := {name for name in done if _repeated(plan, outcomes, done, name)}:
        done -= repeated
    return frozenset(done)


def _repeated(plan: Plan, outcomes: Mapping[str, Outcome], done: set[str], name: str) -> bool:
    if any(before not in done for before in plan.graph.predecessors(name)):
        return True
    behind = [(after, plan.steps[after]) for after in plan.graph.successors(name)]
    undone = any(step.always and after in outcomes for after, step in behind)
    return undone and any(name in step.needs and after not in done for after, step in behind)
