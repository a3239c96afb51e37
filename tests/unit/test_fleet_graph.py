"""The fleet as a graph: dependencies, components, disks, and what a selection picks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from vmkeep import fleet as fleets
from vmkeep.errors import InputError
from vmkeep.planning import blast_radius, bottlenecks, paradoxes
from vmkeep.testing import strategies

TEXT = """\
version: 1
fleet: shop
repository:
  store: s3://b/x
  s3: {endpoint_url: "http://s3.example:8333"}
  key: {env: KEY}
hypervisors: {rack1: {driver: libvirt, uri: "qemu:///system"}}
defaults: {hypervisor: rack1}
vms:
  web1: {depends_on: [app1, app2], disks: [{name: root, size: 1GiB}]}
  app1: {depends_on: [db1], disks: [{name: root, size: 1GiB}]}
  app2: {depends_on: [db1], disks: [{name: root, size: 1GiB, storage: slow}]}
  db1:
    disks: [{name: root, size: 1GiB}, {name: data, size: 2GiB}, {name: log, size: 1GiB}]
    components:
      applications: {erp: {paths: [/opt/erp]}}
      databases: {orders: {engine: postgresql}, stock: {engine: postgresql}}
      filesystems: {data: {disk: data}, home: {path: /home}, on: {disk: log, path: /var}}
      os: {}
"""


@pytest.fixture
def shop():
    return fleets.loads(TEXT).fleet


def test_edges_lead_from_dependency_to_dependent(shop):
    assert sorted(fleets.graph(shop).edges) == [
        ("app1", "web1"),
        ("app2", "web1"),
        ("db1", "app1"),
        ("db1", "app2"),
    ]


def test_waves_are_in_the_order_of_restore(shop):
    assert fleets.waves(shop) == (("db1",), ("app1", "app2"), ("web1",))


def test_closures_contain_the_vms_themselves(shop):
    assert fleets.dependencies(shop, ["app1"]) == {"app1", "db1"}
    assert fleets.dependents(shop, ["app1"]) == {"app1", "web1"}


def test_dependencies_reach_through_vms_that_are_not_chosen(shop):
    assert fleets.dependencies_among(shop, ["web1", "db1"]) == {"web1": {"db1"}, "db1": frozenset()}


def test_components_are_named_in_the_order_of_restore(shop):
    assert fleets.component_names(shop.vms["db1"]) == [
        "os", "filesystems.data", "filesystems.home", "filesystems.on",
        "databases.orders", "databases.stock", "applications.erp",
    ]  # fmt: skip


def test_the_os_has_every_disk_that_nobody_claims_whole(shop):
    assert fleets.disks_of_os(shop.vms["db1"]) == ("root", "log")


def test_no_target_selects_everything(shop):
    assert fleets.select(shop).vms == ("web1", "app1", "app2", "db1")


@pytest.mark.parametrize(
    ("targets", "kinds", "expected"),
    [
        (["app1"], None, {"app1": ("os",)}),
        (["app*"], None, {"app1": ("os",), "app2": ("os",)}),
        (["db1/databases"], None, {"db1": ("databases.orders", "databases.stock")}),
        (["db1/databases.orders", "db1/os"], None, {"db1": ("os", "databases.orders")}),
        (
            None,
            ["databases", "applications.erp"],
            {"db1": ("databases.orders", "databases.stock", "applications.erp")},
        ),
        (["db1/databases", "app1"], ["os"], {"app1": ("os",)}),
    ],
)
def test_a_selection_is_what_targets_name_and_kinds_leave(shop, targets, kinds, expected):
    assert fleets.select(shop, targets, kinds).components == expected


def test_dependencies_come_along_when_asked_for(shop):
    assert fleets.select(shop, ["app1"], ["os"], with_dependencies=True).vms == ("app1", "db1")
    assert fleets.select(shop, ["app1"], with_dependents=True).vms == ("web1", "app1")


@pytest.mark.parametrize(
    ("targets", "kinds", "message"),
    [
        (["bd1"], None, "no VM 'bd1' in fleet shop; did you mean 'db1'"),
        (["x*"], None, "no VM 'x\\*'"),
        (["db1/database"], None, "VM db1 has no component 'database'; did you mean"),
        (["db1/databases.order"], None, "did you mean 'databases.orders'"),
        (None, ["disks"], "no component or kind 'disks'"),
        (["app1"], ["databases"], "nothing to do"),
    ],
)
def test_an_unknown_target_is_told_with_a_suggestion(shop, targets, kinds, message):
    with pytest.raises(InputError, match=message):
        fleets.select(shop, targets, kinds)


def test_a_failure_takes_all_dependents_with_it(shop):
    assert blast_radius(shop, "app2") == {"app2", "web1"}
    assert blast_radius(shop, "storage:slow") == {"app2", "web1"}
    assert blast_radius(shop, "hypervisor:rack1") == set(shop.vms)


def test_a_bottleneck_lies_on_every_chain(shop):
    assert bottlenecks(shop) == {"db1": {"app1", "app2", "web1"}}


def test_a_store_inside_the_fleet_is_a_paradox():
    inside = fleets.loads(TEXT.replace("s3.example", "app1.example")).fleet

    assert [(one.vm, one.needed_as) for one in paradoxes(inside)] == [("app1", "repository.s3.endpoint_url")]


@settings(max_examples=40, deadline=None)
@given(strategies.fleets())
def test_every_disk_belongs_to_at_most_one_component(fleet):
    for vm in fleet.vms.values():
        claimed = [*fleets.disks_of_os(vm), *fleets.whole_disks(vm.components).values()]
        assert len(claimed) == len(set(claimed))
