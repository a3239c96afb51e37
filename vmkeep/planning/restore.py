"""The plan of a restore.

Per VM, here one that is created anew and can be started (the step with a star comes whatever happened):

    place -> configure -> restore os -> filesystems -> databases -> applications -> start -> health
                                                                         all over:  release*

or restored instantly, from a server, its data coming in when every VM of the plan has passed its gates:

    place -> configure -> serve -> start -> health -> ... -> stream
                                                      all over:  release*

A dependent's data may be restored at any time; its `start` needs the `health` of all it depends on.
Where VMs stay powered off there is no `start`: the dependent's first `restore` needs that `health`.
Inside one VM one component is restored at a time, because all of them write to the same disks; a failure
skips the kinds that build on it, not its siblings.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from vmkeep.errors import InputError
from vmkeep.fleet import dependencies_among, kind_of
from vmkeep.fleet.model import Kind
from vmkeep.planning.costs import calling, disks_of, holds, moving, size_of
from vmkeep.planning.facts import Facts
from vmkeep.planning.plan import Plan
from vmkeep.planning.step import Estimate, Step, Verb

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from vmkeep.fleet import Fleet, Selection


@dataclass(frozen=True, slots=True)
class _Machine:
    """One VM of a restore."""

    name: str
    components: tuple[str, ...]
    created: bool
    started: bool
    gates: frozenset[str]
    """The `health` steps of all it depends on."""
    instant: bool = False


def plan_restore(  # noqa: PLR0913  (each is a keyword, and a choice of its own)
    fleet: Fleet,
    selection: Selection,
    facts: Facts | None = None,
    *,
    create: Collection[str] | None = None,
    start: bool = True,
    instant: bool = False,
) -> Plan:
    """Return the steps that restore what is selected.

    Args:
        create: the VMs that are placed and created before their data is written. `None`: those whose
            `os` is selected; the others must exist.
        start: whether VMs are started where their driver can.
        instant: whether they run from a server at once, and their data streams in behind them.

    Raises:
        InputError: instantly, and a VM is not created or cannot be started.
    """
    facts = facts or Facts()
    steps: list[Step] = []
    for name, needed in dependencies_among(fleet, selection.vms).items():
        components = selection.components[name]
        machine = _Machine(
            name,
            components,
            created=Kind.OS.value in components if create is None else name in create,
            started=start and fleet.vms[name].hypervisor not in facts.powered_off,
            gates=frozenset(f"health {dependency}" for dependency in needed),
            instant=instant,
        )
        if instant and not (machine.created and machine.started):
            raise InputError(f"VM {name} cannot be restored instantly: it is not created and started by this")
        steps += _steps(fleet, facts, machine)
    if instant:
        steps += _streams(fleet, facts, selection, steps)
    return Plan.of("restore", fleet.fleet, steps)


def _steps(fleet: Fleet, facts: Facts, machine: _Machine) -> Iterator[Step]:
    name = machine.name
    held = holds(fleet, facts, name)
    before: frozenset[str] = frozenset()
    done: list[str] = []
    if machine.created:
        yield Step(f"place {name}", Verb.PLACE, (name,), estimate=calling(facts))
        before = frozenset({f"configure {name}"})
        yield Step(
            f"configure {name}", Verb.CONFIGURE, (name,), needs=frozenset({f"place {name}"}),
            resources=held, estimate=calling(facts),
        )  # fmt: skip
        done += [f"place {name}", f"configure {name}"]
    if machine.instant:
        yield Step(
            f"serve {name}", Verb.SERVE, (name,), needs=before, resources=held, estimate=calling(facts)
        )
        ready = frozenset({f"serve {name}"})
        done.append(f"serve {name}")
    else:
        for step in _restores(fleet, facts, machine, before):
            done.append(step.id)
            yield step
        ready = frozenset(f"restore {name}/{component}" for component in machine.components)
    if machine.started:
        yield Step(
            f"start {name}", Verb.START, (name,), needs=ready | machine.gates,
            resources=held, estimate=calling(facts),
        )  # fmt: skip
        ready = frozenset({f"start {name}"})
        done.append(f"start {name}")
    seconds = facts.rates.boot if machine.started else facts.rates.call
    yield Step(f"health {name}", Verb.HEALTH, (name,), needs=ready, estimate=Estimate(seconds))
    if not machine.instant:
        yield _release(facts, name, [*done, f"health {name}"])


def _release(facts: Facts, name: str, done: Iterable[str]) -> Step:
    return Step(
        f"release {name}", Verb.RELEASE, (name,), after=frozenset(done), estimate=calling(facts), always=True
    )


def _streams(fleet: Fleet, facts: Facts, selection: Selection, steps: Collection[Step]) -> Iterator[Step]:
    """Yield for each VM what lets its data stream in, and the release after it.

    All of it begins when every VM has passed its gates, or failed: until then those that boot need the
    repository, and the workers, for themselves.
    """
    gates = {step.vms[0]: step.id for step in steps if step.verb is Verb.HEALTH}
    for name, gate in gates.items():
        size = sum(size_of(fleet, facts, name, component) for component in selection.components[name])
        yield Step(
            f"stream {name}", Verb.STREAM, (name,),
            needs=frozenset({gate}), after=frozenset({*gates.values()} - {gate}),
            estimate=moving(facts, size, facts.rates.restore),
        )  # fmt: skip
        mine = [step.id for step in steps if step.vms == (name,)]
        yield _release(facts, name, [*mine, f"stream {name}"])


def _restores(fleet: Fleet, facts: Facts, machine: _Machine, before: frozenset[str]) -> Iterator[Step]:
    """Yield the VM's `restore` steps: each needs the kinds before it, and waits for its sibling."""
    name = machine.name
    needed = before if machine.started else before | machine.gates
    for _, components in groupby(machine.components, kind_of):
        same_kind: list[str] = []
        for component in components:
            step = Step(
                f"restore {name}/{component}", Verb.RESTORE, (name,), component,
                needs=needed, after=frozenset(same_kind[-1:]),
                resources=holds(fleet, facts, name, disks_of(fleet.vms[name], component)),
                estimate=moving(facts, size_of(fleet, facts, name, component), facts.rates.restore),
            )  # fmt: skip
            same_kind.append(step.id)
            yield step
        needed = frozenset(same_kind)
