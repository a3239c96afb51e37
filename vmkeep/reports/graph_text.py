"""Fleets and plans as text that other tools draw: Mermaid (GitHub, GitLab, Prefect) and DOT (Graphviz)."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING

from vmkeep.fleet import component_names, graph, kind_of
from vmkeep.reports.fleet_picture import KIND_COLOURS
from vmkeep.reports.plan_picture import VERB_COLOURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmkeep.fleet import Fleet
    from vmkeep.planning import Plan


def fleet_mermaid(fleet: Fleet) -> str:
    """Return the fleet as a Mermaid flow chart."""
    ids = _numbered(fleet.vms)
    owner = {name: group for group, config in fleet.consistency_groups.items() for name in config.vms}
    lines = ["flowchart LR"]
    for group, config in fleet.consistency_groups.items():
        lines.append(f'  subgraph {_numbered(fleet.consistency_groups, "g")[group]}["{_mermaid(group)}"]')
        lines += [f"    {_mermaid_vm(fleet, ids, name)}" for name in config.vms]
        lines.append("  end")
    lines += [f"  {_mermaid_vm(fleet, ids, name)}" for name in fleet.vms if name not in owner]
    lines += [f"  {ids[before]} --> {ids[after]}" for before, after in sorted(graph(fleet).edges)]
    return "\n".join([*lines, ""])


def fleet_dot(fleet: Fleet) -> str:
    """Return the fleet as a DOT digraph."""
    owner = {name: group for group, config in fleet.consistency_groups.items() for name in config.vms}
    lines = [
        f"digraph {json.dumps(fleet.fleet)} {{",
        '  rankdir=LR; node [shape=box, style="rounded,filled", fillcolor=white, fontname=sans];',
    ]
    for group, config in fleet.consistency_groups.items():
        lines.append(f"  subgraph {json.dumps(f'cluster_{group}')} {{")
        lines.append(f"    label={json.dumps(group)}; style=dashed;")
        lines += [f"    {_dot_vm(fleet, name)}" for name in config.vms]
        lines.append("  }")
    lines += [f"  {_dot_vm(fleet, name)}" for name in fleet.vms if name not in owner]
    lines += [
        f"  {json.dumps(before)} -> {json.dumps(after)};" for before, after in sorted(graph(fleet).edges)
    ]
    return "\n".join([*lines, "}", ""])


def plan_mermaid(plan: Plan) -> str:
    """Return the plan as a Mermaid flow chart; dotted edges only wait."""
    ids = _numbered(plan.steps)
    lines = ["flowchart LR"]
    for step in plan.order():
        shape = f'(["{_mermaid(step.id)}"])' if step.always else f'["{_mermaid(step.id)}"]'
        lines.append(f"  {ids[step.id]}{shape}:::{step.verb.value}")
    for before, after, required in plan.essential_edges():
        lines.append(f"  {ids[before]} {'-->' if required else '-.->'} {ids[after]}")
    for verb in sorted({step.verb for step in plan.steps.values()}):
        ground, ink = VERB_COLOURS[verb]
        lines.append(f"  classDef {verb.value} fill:{ground},stroke:{ink},color:{ink}")
    return "\n".join([*lines, ""])


def plan_dot(plan: Plan) -> str:
    """Return the plan as a DOT digraph; dashed edges only wait."""
    lines = [
        f"digraph {json.dumps(f'{plan.operation} {plan.fleet}')} {{",
        '  rankdir=LR; node [shape=box, style="rounded,filled", fontname=sans];',
    ]
    for step in plan.order():
        ground, ink = VERB_COLOURS[step.verb]
        look = "rounded,filled,dashed" if step.always else "rounded,filled"
        lines.append(f'  {json.dumps(step.id)} [fillcolor="{ground}", color="{ink}", style="{look}"];')
    for before, after, required in plan.essential_edges():
        look = "" if required else " [style=dashed]"
        lines.append(f"  {json.dumps(before)} -> {json.dumps(after)}{look};")
    return "\n".join([*lines, "}", ""])


def _numbered(names: Iterable[str], prefix: str = "n") -> dict[str, str]:
    """Return an id that any tool takes for each name."""
    return {name: f"{prefix}{number}" for number, name in enumerate(names)}


def _mermaid_vm(fleet: Fleet, ids: dict[str, str], name: str) -> str:
    tags = "<br/>".join(_mermaid_tags(fleet, name))
    return f'{ids[name]}["<b>{_mermaid(name)}</b><br/>{tags}"]'


def _mermaid_tags(fleet: Fleet, name: str) -> Iterator[str]:
    for component in component_names(fleet.vms[name]):
        ink = KIND_COLOURS[kind_of(component)][1]
        yield f"<span style='color:{ink}'>{_mermaid(component)}</span>"


def _mermaid(text: str) -> str:
    return html.escape(text).replace("\n", " ")


def _dot_vm(fleet: Fleet, name: str) -> str:
    label = "\n".join([name, *component_names(fleet.vms[name])])
    return f"{json.dumps(name)} [label={json.dumps(label)}];"
