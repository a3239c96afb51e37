"""The plans of the operations with one kind of step: configure, verify, copy and prune."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.fleet import dependencies_among
from vmkeep.planning.costs import LINE, UPLOAD, calling, holds, moving, sending, size_of
from vmkeep.planning.facts import Facts
from vmkeep.planning.plan import Plan
from vmkeep.planning.step import Step, Verb

if TYPE_CHECKING:
    from collections.abc import Collection

    from vmkeep.fleet import Fleet, Selection


def plan_configure(fleet: Fleet, selection: Selection, facts: Facts | None = None) -> Plan:
    """Return the steps that make the selected VMs what is declared, dependencies first.

    A VM that cannot be configured does not keep its dependents from it: nothing is started.
    """
    facts = facts or Facts()
    return Plan.of(
        "configure",
        fleet.fleet,
        [
            Step(
                f"configure {name}", Verb.CONFIGURE, (name,),
                after=frozenset(f"configure {dependency}" for dependency in needed),
                resources=holds(fleet, facts, name), estimate=calling(facts),
            )
            for name, needed in dependencies_among(fleet, selection.vms).items()
        ],
    )  # fmt: skip


def plan_verify(
    fleet: Fleet, selection: Selection, facts: Facts | None = None, *, share: float = 1.0
) -> Plan:
    """Return the steps that read recovery points of the selected VMs back; none waits for another.

    Args:
        share: the part of the stored bytes that is read, above 0 and at most 1.
    """
    facts = facts or Facts()
    steps = []
    for name, components in selection.components.items():
        size = sum(size_of(fleet, facts, name, component) for component in components)
        estimate = moving(facts, int(size * share), facts.rates.verify)
        steps.append(Step(f"verify {name}", Verb.VERIFY, (name,), estimate=estimate))
    return Plan.of("verify", fleet.fleet, steps)


def plan_scrub(fleet: Fleet, facts: Facts | None = None, *, size: int = 0) -> Plan:
    """Return the step that reads back what is stored, whoever's it is.

    Args:
        size: the bytes that are read.
    """
    facts = facts or Facts()
    step = Step("verify packs", Verb.VERIFY, (), estimate=moving(facts, size, facts.rates.verify))
    return Plan.of("verify", fleet.fleet, [step])


def plan_copy(
    fleet: Fleet, selection: Selection, facts: Facts | None = None, *, to: Collection[str] | None = None
) -> Plan:
    """Return the steps that copy the recovery points of the selected VMs; none waits for another.

    Args:
        to: the names of the copies; all by default.
    """
    facts = facts or Facts()
    steps = []
    for copy in fleet.repository.copies if to is None else to:
        for name, components in selection.components.items():
            new = sum(facts.new.get(f"{name}/{component}", 0) for component in components)
            steps.append(
                Step(
                    f"copy {name} to {copy}", Verb.COPY, (name,), repository=copy, resources=(UPLOAD, LINE),
                    estimate=sending(fleet, facts, new),
                )
            )  # fmt: skip
    return Plan.of("copy", fleet.fleet, steps)


def plan_prune(fleet: Fleet, vms: Collection[str], facts: Facts | None = None) -> Plan:
    """Return the steps that forget what is not kept of each VM, and behind them the one that frees space.

    That one does not need the others: what was forgotten before is deleted in any case.

    Args:
        vms: those that have recovery points, also when they are not declared any more.
    """
    facts = facts or Facts()
    forget = [Step(f"prune {name}", Verb.PRUNE, (name,), estimate=calling(facts)) for name in vms]
    free = Step(
        "prune packs", Verb.PRUNE, (), after=frozenset(step.id for step in forget), estimate=calling(facts)
    )
    return Plan.of("prune", fleet.fleet, [*forget, free])
