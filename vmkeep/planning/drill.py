"""The plan of a drill: a restore under other names into an isolated network, and the way back.

Per VM (the steps with a star come whatever happened):

    isolate -> configure -> serve -> start -> health
                                all over, and its dependents are gone:  remove*  -> all gone:  remove network*

Where a VM cannot run from a server of its recovery point, its `restore` steps come in the place of `serve`.

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
    from collections.abc import Collection, Iterator

    from vmkeep.fleet import Fleet, Selection


def plan_drill(
    fleet: Fleet,
    selection: Selection,
    facts: Facts | None = None,
    *,
    instant: Collection[str] = frozenset(),
) -> Plan:
    """Return the steps that prove that what is selected can be restored, dependencies first.

    Where VMs cannot be started there is no network, and their health is that of their images.

    Args:
        instant: the VMs that run from a server of their recovery point: their data is never copied.
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
    for step in _served(restore, instant, facts):
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


def _served(restore: Plan, instant: Collection[str], facts: Facts) -> Iterator[Step]:
    """Yield the steps of a restore; for VMs that run from a server that takes the place of writing disks."""
    written = {
        step.id: f"serve {step.vms[0]}"
        for step in restore.steps.values()
        if step.verb is Verb.RESTORE and step.vms[0] in instant
    }
    for name in instant:
        configured = restore.steps[f"configure {name}"]
        yield Step(
            f"serve {name}", Verb.SERVE, (name,), needs=frozenset({configured.id}),
            resources=configured.resources, estimate=calling(facts),
        )  # fmt: skip
    for step in restore.steps.values():
        if step.id not in written:
            needs = frozenset(written.get(one, one) for one in step.needs)
            yield replace(step, needs=needs, after=frozenset(written.get(one, one) for one in step.after))


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
