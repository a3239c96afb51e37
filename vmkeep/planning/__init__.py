"""What runs in which order, as pure data: no input or output in here."""

from __future__ import annotations

from vmkeep.planning.backup import plan_backup
from vmkeep.planning.costs import limits_of, predicted_limits
from vmkeep.planning.drill import plan_drill
from vmkeep.planning.execution import Execution, Outcome, State, Summary
from vmkeep.planning.facts import Facts, Rates
from vmkeep.planning.plan import Plan
from vmkeep.planning.restore import plan_restore
from vmkeep.planning.resume import still_done
from vmkeep.planning.risk import Paradox, blast_radius, bottlenecks, paradoxes
from vmkeep.planning.simulate import Schedule, Slot, simulate
from vmkeep.planning.step import Estimate, Step, Verb
from vmkeep.planning.upkeep import plan_configure, plan_copy, plan_prune, plan_scrub, plan_verify

__all__ = [
    "Estimate",
    "Execution",
    "Facts",
    "Outcome",
    "Paradox",
    "Plan",
    "Rates",
    "Schedule",
    "Slot",
    "State",
    "Step",
    "Summary",
    "Verb",
    "blast_radius",
    "bottlenecks",
    "limits_of",
    "paradoxes",
    "plan_backup",
    "plan_configure",
    "plan_copy",
    "plan_drill",
    "plan_prune",
    "plan_restore",
    "plan_scrub",
    "plan_verify",
    "predicted_limits",
    "simulate",
    "still_done",
]
