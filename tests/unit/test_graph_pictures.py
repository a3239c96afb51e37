"""Pictures of fleets and plans: everything is in them, nothing overlaps, any name survives."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import networkx as nx
import pytest
from hypothesis import given, settings

from vmkeep.fleet import component_names, graph, load, loads, select
from vmkeep.planning import Verb, limits_of, plan_backup, plan_restore, simulate
from vmkeep.reports.fleet_picture import fleet_svg
from vmkeep.reports.graph_text import fleet_dot, fleet_mermaid, plan_dot, plan_mermaid
from vmkeep.reports.layout import Box, layered
from vmkeep.reports.plan_picture import VERB_COLOURS, plan_svg
from vmkeep.reports.tables import plan_rows, plan_text
from vmkeep.testing import strategies

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(params=["shop", "company"])
def fleet(request):
    return load(CONFIGS / f"{request.param}.yaml").fleet


def texts(picture):
    root = ET.fromstring(picture)  # noqa: S314  # our own
    return {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}


def test_the_picture_of_a_fleet_names_every_vm_component_and_group(fleet):
    found = texts(fleet_svg(fleet))

    assert set(fleet.vms) | set(fleet.consistency_groups) <= found
    assert all(
        name.partition(".")[2] in found or name == "os"
        for vm in fleet.vms.values()
        for name in component_names(vm)
    )


def test_the_picture_of_a_plan_names_every_step(fleet):
    plan = plan_backup(fleet, select(fleet))

    assert set(plan.steps) <= texts(plan_svg(plan))


def test_mermaid_and_dot_have_every_dependency(fleet):
    assert fleet_mermaid(fleet).count(" --> ") == graph(fleet).number_of_edges()
    assert fleet_dot(fleet).count(" -> ") == graph(fleet).number_of_edges()


def test_the_texts_of_a_plan_have_every_step(fleet):
    plan = plan_restore(fleet, select(fleet))

    assert all(name in plan_mermaid(plan) and f'"{name}"' in plan_dot(plan) for name in plan.steps)


def test_the_text_of_a_plan_shows_waves_the_critical_path_and_the_time(fleet):
    plan = plan_backup(fleet, select(fleet))

    text = plan_text(plan, simulate(plan, limits_of(fleet)))

    assert text.count("\nwave ") == len(plan.waves())
    assert f"critical path: {plan.critical_path()[0].id}" in text
    assert "takes about" in text


def test_the_rows_of_a_plan_hold_every_step_once(fleet):
    plan = plan_backup(fleet, select(fleet))

    assert sorted(row.step for row in plan_rows(plan)) == sorted(plan.steps)


def test_the_same_fleet_gives_the_same_picture(fleet):
    assert fleet_svg(fleet) == fleet_svg(fleet)


def test_vms_without_dependencies_lie_in_rows():
    layout = layered({f"vm{n}": Box(100, 50) for n in range(12)}, [], column_gap=40, row_gap=20)

    assert layout.width > layout.height
    assert no_overlaps(layout)


def test_a_fleet_of_one_vm_has_a_picture():
    fleet = loads(
        "{version: 1, fleet: one, repository: {store: ., key: {env: K}},"
        " hypervisors: {h: {driver: images, path: .}},"
        " vms: {vm: {hypervisor: h, disks: [{name: a-very-long-name-of-a-disk, size: 1GiB}]}}}"
    ).fleet

    assert "vm" in texts(fleet_svg(fleet))


def no_overlaps(layout):
    return not any(
        one.x < other.x + other.width - 0.01
        and other.x < one.x + one.width - 0.01
        and one.y < other.y + other.height - 0.01
        and other.y < one.y + one.height - 0.01
        for one, other in combinations(layout.spots.values(), 2)
    )


@settings(max_examples=60, deadline=None)
@given(strategies.plans())
def test_no_boxes_overlap_and_edges_go_to_the_right(plan):
    edges = list(nx.DiGraph(plan.graph).edges)

    layout = layered({name: Box(90, 30) for name in plan.steps}, edges, column_gap=40, row_gap=10)

    assert no_overlaps(layout)
    for points in layout.routes.values():
        assert [x for x, _ in points] == sorted(x for x, _ in points)


@settings(max_examples=25, deadline=None)
@given(strategies.fleets())
def test_every_fleet_and_its_plans_can_be_drawn(fleet):
    for picture in (fleet_svg(fleet), plan_svg(plan_backup(fleet, select(fleet)))):
        ET.fromstring(picture)  # noqa: S314  # our own


def test_every_verb_has_its_colours():
    assert set(VERB_COLOURS) == set(Verb)
