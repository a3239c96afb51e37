"""Hypothesis strategies: valid fleet files, and plans of any shape. Needs the package `hypothesis`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from hypothesis import strategies as st

from vmkeep.fleet import Fleet, loads
from vmkeep.planning import Estimate, Plan, Step, Verb

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

_RESOURCES = ("hypervisor:h0", "storage:s0", "upload")


@st.composite
def fleet_texts(draw: DrawFn, *, most_vms: int = 7) -> str:
    """Return the text of a valid fleet file with up to *most_vms* VMs."""
    names = [f"vm{number}" for number in range(draw(st.integers(1, most_vms)))]
    hypervisors = {f"h{number}": {"driver": "images", "path": f"./h{number}"} for number in range(2)}
    data: dict[str, Any] = {
        "version": 1,
        "fleet": "drawn",
        "repository": {"store": "./backups", "key": {"env": "KEY"}},
        "hypervisors": hypervisors,
        "defaults": {"hypervisor": "h0"},
        "vms": {name: draw(_machines(names[:number])) for number, name in enumerate(names)},
        "consistency_groups": draw(_groups(names)),
    }
    limits = draw(st.dictionaries(st.sampled_from(["h0", "h1", "upload"]), st.integers(1, 3)))
    if limits:
        data["limits"] = limits
    return yaml.safe_dump(data, sort_keys=False)


def fleets(*, most_vms: int = 7) -> SearchStrategy[Fleet]:
    """Return checked fleets with up to *most_vms* VMs."""
    return fleet_texts(most_vms=most_vms).map(lambda text: loads(text).fleet)


@st.composite
def plans(draw: DrawFn, *, most_steps: int = 14) -> Plan:
    """Return a plan of any shape: edges of both sorts, `always` steps, resources, estimates."""
    steps: list[Step] = []
    for number in range(draw(st.integers(1, most_steps))):
        before = [step.id for step in steps]
        chosen = draw(st.lists(st.sampled_from(before), unique=True, max_size=3)) if before else []
        needed = draw(st.integers(0, len(chosen)))
        steps.append(
            Step(
                f"step {number}",
                Verb.BACKUP,
                ("vm0",),
                needs=frozenset(chosen[:needed]),
                after=frozenset(chosen[needed:]),
                resources=tuple(draw(st.lists(st.sampled_from(_RESOURCES), unique=True, max_size=3))),
                estimate=Estimate(draw(st.integers(0, 9)) / 2),
                always=draw(st.booleans()),
            )
        )
    return Plan.of("backup", "drawn", steps)


def limits() -> SearchStrategy[dict[str, int]]:
    """Return limits for the resources of `plans`; some are not scarce."""
    return st.dictionaries(st.sampled_from(_RESOURCES), st.integers(1, 2))


@st.composite
def _machines(draw: DrawFn, earlier: list[str]) -> dict[str, Any]:
    disks = [{"name": f"d{number}", "size": f"{draw(st.integers(1, 9))}GiB"} for number in range(3)]
    components: dict[str, Any] = {"os": {}}
    if draw(st.booleans()):
        components["filesystems"] = {"data": {"disk": "d1"}, "files": {"path": "/srv"}}
    if draw(st.booleans()):
        components["databases"] = {"orders": {"engine": "postgresql"}}
    if draw(st.booleans()):
        components["applications"] = {"erp": {"paths": ["/opt/erp"]}}
    machine: dict[str, Any] = {"disks": disks, "components": components}
    if earlier:
        machine["depends_on"] = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=3))
    if draw(st.booleans()):
        machine["hypervisor"] = "h1"
    return machine


@st.composite
def _groups(draw: DrawFn, names: list[str]) -> dict[str, Any]:
    """Return up to two groups of VMs, none in both."""
    marks = draw(st.lists(st.integers(0, 2), min_size=len(names), max_size=len(names)))
    members = {
        f"g{mark}": [name for name, own in zip(names, marks, strict=True) if own == mark] for mark in (1, 2)
    }
    return {group: {"vms": vms} for group, vms in members.items() if vms}
