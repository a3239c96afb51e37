"""The plan of a drill: a restore under other names into an isolated network, and the way back.

Per VM (the steps with a star come whatever happened):

    isolate -> configure -> restore ... -> start -> health
                                all over, and its dependents are gone:  remove*  -> all gone:  remove network*

Only what is created here is removed. A VM goes as soon as it is not needed any more: its memory and its disks
are lent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmkeep.fleet import dependencies_among
from vmkeep.planning.costs import calling, holds
from vmkeep.planning.facts import Facts
from vmkeep.planning.plan import Plan
from vmkeep.planning.restore import plan_restore
from vmkeep.planning.step import Step, Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.fleet import Fleet, Selection


def plan_drill(fleet: Fleet, selection: Selection, facts: Facts | None = None) -> Plan:
    """Return the steps that prove that what is selected can be restored, dependencies first.

    Where VMs cannot be started there is no network, and their health is that of their images.
    """
    facts = facts or Facts()
    restore = plan_restore(fleet, selection, facts, create=selection.vms)
    needed = dependencies_among(fleet, selection.vms)
    networks = {
        hypervisor: tuple(name for name in selection.vms if fleet.vms[name].hypervisor == hypervisor)
        for hypervisor in dict.fromkeys(fleet.vms[name].hypervisor for name in selection.vms)
        if hypervisor not in facts.powered_off
    }
    steps: list[Step] = []
    for hypervisor, vms in networks.items():
        steps += _network(hypervisor, vms, facts)
    for step in restore.steps.values():
        name = step.vms[0]
        if step.verb is Verb.RELEASE:
            dependents = frozenset(f"remove {other}" for other, on in needed.items() if name in on)
            steps.append(_removal(fleet, facts, name, step.after | dependents))
        elif step.verb is Verb.CONFIGURE and fleet.vms[name].hypervisor in networks:
            network = frozenset({f"isolate {fleet.vms[name].hypervisor}"})
            steps.append(replace(step, needs=step.needs | network))
        else:
            steps.append(step)
    return Plan.of("drill", fleet.fleet, steps)


def _network(hypervisor: str, vms: tuple[str, ...], facts: Facts) -> Iterator[Step]:
    yield Step(f"isolate {hypervisor}", Verb.ISOLATE, vms, estimate=calling(facts))
    gone = frozenset(f"remove {name}" for name in vms) | {f"isolate {hypervisor}"}
    yield Step(
        f"remove network of {hypervisor}", Verb.REMOVE, (), after=gone, estimate=calling(facts), always=True,
        group=hypervisor,
    )  # fmt: skip


def _removal(fleet: Fleet, facts: Facts, name: str, after: frozenset[str]) -> Step:
    return Step(
        f"remove {name}", Verb.REMOVE, (name,), after=after, resources=holds(fleet, facts, name),
        estimate=calling(facts), always=True,
    )  # fmt: skip
