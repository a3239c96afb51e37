r"""The plan of a backup.

Per consistency group, here of one VM with two components (steps with a star come whatever happened):

    configure db1 -> snapshot db1 -> backup db1/os ---------------> upload db1/os
                                 \-> backup db1/databases.orders -> upload db1/databases.orders
                                      all backups over:               all uploads over:
                                      release db1*                    seal db1* -> verify db1

Groups meet in one thing only: the snapshot of dependents is over before that of what they depend on is
taken, so that no dependent knows of something newer than its dependency does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx

from vmkeep.fleet import dependencies_among, group_of
from vmkeep.planning.costs import LINE, UPLOAD, calling, disks_of, holds, moving, sending, size_of
from vmkeep.planning.facts import Facts
from vmkeep.planning.plan import Plan
from vmkeep.planning.step import Step, Verb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmkeep.fleet import Fleet, Selection


@dataclass(frozen=True, slots=True)
class _Group:
    """VMs that are snapshotted together, as far as they are selected."""

    name: str
    vms: tuple[str, ...]
    earlier: frozenset[str]
    """Groups whose snapshot comes first."""


def plan_backup(
    fleet: Fleet, selection: Selection, facts: Facts | None = None, *, verify: bool = True
) -> Plan:
    """Return the steps that save what is selected.

    Args:
        verify: whether each new recovery point is read back, in a sample.
    """
    facts = facts or Facts()
    own = group_of(fleet)
    members: dict[str, list[str]] = {}
    for name in selection.vms:
        members.setdefault(own[name], []).append(name)
    earlier = _snapshots_before(fleet, selection, own)
    steps: list[Step] = []
    for group_name, vms in members.items():
        group = _Group(group_name, tuple(vms), earlier[group_name])
        backups = [*_backups(fleet, selection, facts, group)]
        steps += [*_snapshot(fleet, facts, group), *backups, _release(facts, group, backups)]
        for name in vms:
            steps += _seal(selection, facts, group, name, verify=verify)
    return Plan.of("backup", fleet.fleet, steps)


def _snapshot(fleet: Fleet, facts: Facts, group: _Group) -> Iterator[Step]:
    for name in group.vms:
        yield Step(
            f"configure {name}", Verb.CONFIGURE, (name,), group=group.name,
            resources=holds(fleet, facts, name), estimate=calling(facts),
        )  # fmt: skip
    yield Step(
        f"snapshot {group.name}", Verb.SNAPSHOT, group.vms, group=group.name,
        needs=frozenset(f"configure {name}" for name in group.vms),
        after=frozenset(f"snapshot {other}" for other in group.earlier),
        resources=_all_held(fleet, facts, group.vms), estimate=calling(facts),
    )  # fmt: skip


def _backups(fleet: Fleet, selection: Selection, facts: Facts, group: _Group) -> Iterator[Step]:
    """Yield a `backup` and an `upload` for each component."""
    for name in group.vms:
        for component in selection.components[name]:
            size = size_of(fleet, facts, name, component)
            new = facts.new.get(f"{name}/{component}", size)
            yield Step(
                f"backup {name}/{component}", Verb.BACKUP, (name,), component, group.name,
                needs=frozenset({f"snapshot {group.name}"}),
                resources=holds(fleet, facts, name, disks_of(fleet.vms[name], component)),
                estimate=moving(facts, size, facts.rates.read),
            )  # fmt: skip
            yield Step(
                f"upload {name}/{component}", Verb.UPLOAD, (name,), component, group.name,
                needs=frozenset({f"backup {name}/{component}"}), resources=(UPLOAD, LINE),
                estimate=sending(fleet, facts, new),
            )  # fmt: skip


def _release(facts: Facts, group: _Group, backups: Iterable[Step]) -> Step:
    """Return the step that drops the snapshot when all reading is over; uploads do not need it."""
    reading = {step.id for step in backups if step.verb is Verb.BACKUP}
    return Step(
        f"release {group.name}", Verb.RELEASE, group.vms, group=group.name,
        after=frozenset({f"snapshot {group.name}", *reading}), estimate=calling(facts), always=True,
    )  # fmt: skip


def _seal(selection: Selection, facts: Facts, group: _Group, name: str, *, verify: bool) -> Iterator[Step]:
    yield Step(
        f"seal {name}", Verb.SEAL, (name,), group=group.name,
        after=frozenset(f"upload {name}/{component}" for component in selection.components[name]),
        estimate=calling(facts), always=True,
    )  # fmt: skip
    if verify:
        yield Step(
            f"verify {name}", Verb.VERIFY, (name,), group=group.name,
            needs=frozenset({f"seal {name}"}), estimate=calling(facts),
        )  # fmt: skip


def _all_held(fleet: Fleet, facts: Facts, vms: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(token for name in vms for token in holds(fleet, facts, name)))


def _snapshots_before(
    fleet: Fleet, selection: Selection, own: Mapping[str, str]
) -> dict[str, frozenset[str]]:
    """Return for each group those whose snapshot comes first: the groups of its dependents.

    Groups can depend on each other in circles though VMs cannot; inside a circle there is no order
    that serves all, so none is asked for.
    """
    edges: nx.DiGraph[str] = nx.DiGraph()
    for name, needed in dependencies_among(fleet, selection.vms).items():
        edges.add_node(own[name])
        edges.add_edges_from(
            (own[name], own[dependency]) for dependency in needed if own[dependency] != own[name]
        )
    circle = {
        group: number
        for number, members in enumerate(nx.strongly_connected_components(edges))
        for group in members
    }
    return {
        group: frozenset(other for other in edges.predecessors(group) if circle[other] != circle[group])
        for group in edges
    }
