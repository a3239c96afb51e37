"""A plan: the steps of one operation, and the graph that says what comes after what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import networkx as nx

from vmkeep.errors import InputError
from vmkeep.planning.step import Estimate, Step, Verb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps by id, and a graph of their ids; a plan that exists can be carried out.

    An edge carries `required`: true if the later step is skipped when the earlier one fails, false
    if it only waits for it.
    """

    operation: str
    fleet: str
    steps: Mapping[str, Step]
    graph: nx.DiGraph[str] = field(compare=False, repr=False)

    @classmethod
    def of(cls, operation: str, fleet: str, steps: Iterable[Step]) -> Plan:
        """Join *steps* to a plan.

        Raises:
            InputError: an id occurs twice, a step refers to one that is not there, or steps wait for
                each other.
        """
        by_id: dict[str, Step] = {}
        edges: nx.DiGraph[str] = nx.DiGraph()
        for step in steps:
            if step.id in by_id:
                raise InputError(f"the plan has two steps {step.id!r}")
            by_id[step.id] = step
            edges.add_node(step.id)
        for step in by_id.values():
            for before in sorted(step.needs | step.after):
                if before not in by_id:
                    raise InputError(f"step {step.id!r} waits for {before!r}, which is not in the plan")
                edges.add_edge(before, step.id, required=before in step.needs)
        if not nx.is_directed_acyclic_graph(edges):
            cycle = [start for start, _ in nx.find_cycle(edges)]
            raise InputError(f"steps wait for each other: {' -> '.join([*cycle, cycle[0]])}")
        return cls(operation, fleet, by_id, nx.freeze(edges))

    def __len__(self) -> int:
        return len(self.steps)

    def waves(self) -> tuple[tuple[Step, ...], ...]:
        """Return the steps in waves: each wave waits for earlier ones only."""
        return tuple(
            tuple(self.steps[name] for name in sorted(wave))
            for wave in nx.topological_generations(self.graph)
        )

    def remaining(self) -> dict[str, float]:
        """Return for each step the seconds from its start to the end of the plan, if nothing is scarce."""
        left: dict[str, float] = {}
        for name in reversed(list(nx.topological_sort(self.graph))):
            behind = max((left[after] for after in self.graph.successors(name)), default=0.0)
            left[name] = self.steps[name].estimate.seconds + behind
        return left

    def order(self) -> tuple[Step, ...]:
        """Return the steps as one worker would do them: each after all before it, the most urgent first."""
        left = self.remaining()
        names = nx.lexicographical_topological_sort(self.graph, key=lambda name: (-left[name], name))
        return tuple(self.steps[name] for name in names)

    def critical_path(self) -> tuple[Step, ...]:
        """Return the longest chain of steps, by estimated seconds: no execution is shorter."""
        left = self.remaining()
        path: list[Step] = []
        choices: Iterable[str] = self.steps
        while names := sorted(choices, key=lambda name: (-left[name], name)):
            path.append(self.steps[names[0]])
            choices = self.graph.successors(names[0])
        return tuple(path)

    def length(self) -> float:
        """Return the seconds of the critical path, a lower bound of every execution."""
        return max(self.remaining().values(), default=0.0)

    def essential_edges(self) -> list[tuple[str, str, bool]]:
        """Return the edges that no longer way implies, each with its `required`: those worth drawing."""
        return sorted(
            (before, after, bool(self.graph.edges[before, after]["required"]))
            for before, after in nx.transitive_reduction(self.graph).edges
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, from which `from_json` makes it again."""
        return {
            "operation": self.operation,
            "fleet": self.fleet,
            "steps": [_step_to_json(step) for step in self.order()],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_json` described.

        Raises:
            InputError: as `of`.
        """
        return cls.of(value["operation"], value["fleet"], (_step_from_json(step) for step in value["steps"]))


def _step_to_json(step: Step) -> dict[str, Any]:
    return {
        "id": step.id,
        "verb": step.verb.value,
        "vms": list(step.vms),
        "component": step.component,
        "group": step.group,
        "needs": sorted(step.needs),
        "after": sorted(step.after),
        "resources": list(step.resources),
        "estimate": {"seconds": step.estimate.seconds, "size": step.estimate.size},
        "always": step.always,
        "repository": step.repository,
    }


def _step_from_json(value: Mapping[str, Any]) -> Step:
    return Step(
        id=value["id"],
        verb=Verb(value["verb"]),
        vms=tuple(value["vms"]),
        component=value["component"],
        group=value["group"],
        needs=frozenset(value["needs"]),
        after=frozenset(value["after"]),
        resources=tuple(value["resources"]),
        estimate=Estimate(**value["estimate"]),
        always=value["always"],
        repository=value["repository"],
    )
