"""Plans: the right steps in the right order, for every operation and any fleet."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings

from vmkeep.errors import InputError
from vmkeep.fleet import loads, select
from vmkeep.planning import (
    Facts,
    Plan,
    Step,
    Verb,
    limits_of,
    plan_backup,
    plan_configure,
    plan_restore,
    plan_verify,
    predicted_limits,
    simulate,
)
from vmkeep.testing import strategies
from vmkeep.units import GiB, MiB

TEXT = """\
version: 1
fleet: shop
repository: {store: ./backups, key: {env: KEY}}
hypervisors: {rack1: {driver: libvirt, uri: "qemu:///system"}, shelf: {driver: images, path: .}}
defaults: {hypervisor: rack1}
vms:
  db1:
    disks: [{name: root, size: 10GiB, storage: fast}, {name: data, size: 40GiB, storage: slow}]
    components:
      os: {}
      filesystems: {data: {disk: data}, home: {path: /home}}
      databases: {orders: {engine: postgresql}}
    placement: {hosts: [h1]}
  app1: {depends_on: [db1], disks: [{name: root, size: 10GiB}]}
  web1: {depends_on: [app1], disks: [{name: root, size: 10GiB}]}
  other: {disks: [{name: root, size: 1GiB}]}
consistency_groups: {shop: {vms: [db1, app1]}}
limits: {rack1: 4, "host:h1": 2, "storage:fast": 1, upload: 8, bandwidth: 1MiB/s}
"""


@pytest.fixture
def shop():
    return loads(TEXT).fleet


def before(plan, step):
    return nx.ancestors(plan.graph, step)


def test_a_backup_saves_each_component_in_its_own_step(shop):
    plan = plan_backup(shop, select(shop, ["other"]))

    assert [step.id for step in plan.order()] == [
        "configure other", "snapshot other", "backup other/os", "upload other/os",
        "seal other", "release other", "verify other",
    ]  # fmt: skip


def test_a_group_is_snapshotted_at_once(shop):
    step = plan_backup(shop, select(shop)).steps["snapshot shop"]

    assert step.vms == ("db1", "app1")
    assert step.needs == {"configure db1", "configure app1"}


def test_the_snapshot_of_dependents_is_over_before_that_of_their_dependencies(shop):
    assert "snapshot web1" in before(plan_backup(shop, select(shop)), "snapshot shop")


def test_groups_that_depend_on_each_other_in_a_circle_wait_for_neither():
    fleet = loads(TEXT.replace("{shop: {vms: [db1, app1]}}", "{ends: {vms: [db1, web1]}}")).fleet

    plan = plan_backup(fleet, select(fleet))

    assert not plan.steps["snapshot ends"].after
    assert not plan.steps["snapshot app1"].after


def test_a_snapshot_is_released_without_waiting_for_uploads(shop):
    plan = plan_backup(shop, select(shop))

    assert plan.steps["release shop"].always
    assert not any(name.startswith("upload") for name in before(plan, "release shop"))
    assert "backup db1/databases.orders" in plan.steps["release shop"].after


def test_a_point_is_sealed_after_the_uploads_of_its_vm_only(shop):
    step = plan_backup(shop, select(shop)).steps["seal app1"]

    assert (step.needs, step.after, step.always) == (frozenset(), {"upload app1/os"}, True)


def test_a_backup_holds_the_hypervisor_the_host_and_the_storage_that_it_reads(shop):
    plan = plan_backup(shop, select(shop))

    assert plan.steps["backup db1/os"].resources == ("hypervisor:rack1", "host:h1", "storage:fast")
    assert plan.steps["backup db1/filesystems.home"].resources[2:] == ("storage:fast", "storage:slow")
    assert plan.steps["upload db1/os"].resources == ("upload", "bandwidth")


def test_limits_are_named_like_the_resources_of_steps(shop):
    assert limits_of(shop) == {"hypervisor:rack1": 4, "host:h1": 2, "storage:fast": 1, "upload": 8}


def test_known_sizes_are_better_than_declared_ones(shop):
    facts = Facts(allocated={"db1/root": 3 * GiB}, saved={"db1/databases.orders": 7}, new={"db1/os": 5})

    steps = plan_backup(shop, select(shop), facts).steps

    assert steps["backup db1/os"].estimate.size == 3 * GiB
    assert steps["upload db1/os"].estimate.size == 5
    assert steps["backup db1/databases.orders"].estimate.size == 7
    assert steps["backup db1/filesystems.data"].estimate.size == 40 * GiB


def test_a_restore_goes_from_the_disk_to_the_health_check(shop):
    plan = plan_restore(shop, select(shop, ["db1"]))

    assert [step.id for step in plan.order()] == [
        "place db1", "configure db1", "restore db1/os", "restore db1/filesystems.data",
        "restore db1/filesystems.home",
        "restore db1/databases.orders", "start db1", "health db1", "release db1",
    ]  # fmt: skip


def test_a_dependent_starts_only_after_the_health_of_its_dependency(shop):
    plan = plan_restore(shop, select(shop))

    assert "health db1" in plan.steps["start app1"].needs
    assert "health db1" not in before(plan, "restore app1/os")


def test_a_dependent_waits_for_a_dependency_behind_a_vm_that_is_not_restored(shop):
    plan = plan_restore(shop, select(shop, ["db1", "web1"]))

    assert "health db1" in plan.steps["start web1"].needs


def test_vms_that_stay_powered_off_wait_with_their_data(shop):
    plan = plan_restore(shop, select(shop), Facts(powered_off=frozenset({"rack1"})))

    assert not any(step.verb is Verb.START for step in plan.steps.values())
    assert "health db1" in plan.steps["restore app1/os"].needs
    assert "health db1" not in before(plan, "configure app1")


def test_components_of_one_kind_wait_for_each_other_but_do_not_need_each_other(shop):
    step = plan_restore(shop, select(shop)).steps["restore db1/filesystems.home"]

    assert (step.needs, step.after) == ({"restore db1/os"}, {"restore db1/filesystems.data"})


def test_an_instant_restore_lets_data_stream_in_when_every_vm_has_passed_its_gates(shop):
    plan = plan_restore(shop, select(shop, ["db1", "app1"]), instant=True)

    assert [step.id for step in plan.steps.values() if step.vms == ("db1",)] == [
        "place db1", "configure db1", "serve db1", "start db1", "health db1", "stream db1", "release db1",
    ]  # fmt: skip
    assert "stream db1" not in before(plan, "health app1")
    assert plan.steps["stream db1"].needs == {"health db1"}
    assert plan.steps["stream db1"].after == {"health app1"}


def test_data_that_streams_in_holds_no_place_that_a_vm_could_start_in(shop):
    plan = plan_restore(shop, select(shop), instant=True)

    assert plan.steps["stream db1"].resources == ()
    assert (
        plan.steps["stream db1"].estimate.size
        == plan_restore(shop, select(shop)).steps["restore db1/os"].estimate.size
        + plan_restore(shop, select(shop)).steps["restore db1/filesystems.data"].estimate.size
    )


def test_what_is_not_created_and_started_is_not_restored_instantly(shop):
    with pytest.raises(InputError, match="VM db1 cannot be restored instantly"):
        plan_restore(shop, select(shop, ["db1"]), instant=True, start=False)


def test_a_single_component_is_restored_without_creating_its_vm(shop):
    selection = select(shop, ["db1/databases.orders"])

    assert "configure db1" not in plan_restore(shop, selection).steps
    assert "configure db1" in plan_restore(shop, selection, create={"db1"}).steps


def test_nothing_starts_when_a_restore_is_told_so(shop):
    assert "start db1" not in plan_restore(shop, select(shop), start=False).steps


def test_a_vm_is_configured_after_its_dependencies_and_whatever_became_of_them(shop):
    step = plan_configure(shop, select(shop)).steps["configure app1"]

    assert (step.needs, step.after) == (frozenset(), {"configure db1"})


def test_vms_are_verified_independently_and_in_part(shop):
    plan = plan_verify(shop, select(shop), share=0.5)

    assert plan.graph.number_of_edges() == 0
    assert plan.steps["verify other"].estimate.size == GiB // 2


def test_a_plan_refuses_steps_that_wait_for_each_other():
    one = Step("one", Verb.BACKUP, ("vm",), needs=frozenset({"two"}))
    two = Step("two", Verb.BACKUP, ("vm",), after=frozenset({"one"}))

    with pytest.raises(InputError, match=r"one -> two -> one|two -> one -> two"):
        Plan.of("backup", "shop", [one, two])


def test_a_plan_refuses_a_step_that_it_does_not_have():
    with pytest.raises(InputError, match="'gone', which is not in the plan"):
        Plan.of("backup", "shop", [Step("one", Verb.BACKUP, ("vm",), after=frozenset({"gone"}))])


def test_a_plan_refuses_two_steps_of_one_name():
    with pytest.raises(InputError, match="two steps 'one'"):
        Plan.of("backup", "shop", [Step("one", Verb.BACKUP, ("vm",))] * 2)


def every_plan(fleet):
    everything = select(fleet)
    yield plan_backup(fleet, everything)
    yield plan_restore(fleet, everything)
    yield plan_restore(fleet, everything, Facts(powered_off=frozenset({"h0"})))
    yield plan_configure(fleet, everything)
    yield plan_verify(fleet, everything)


@settings(max_examples=50, deadline=None)
@given(strategies.fleets())
def test_every_fleet_has_plans_whose_order_respects_every_edge(fleet):
    for plan in every_plan(fleet):
        position = {step.id: index for index, step in enumerate(plan.order())}
        assert len(position) == len(plan)
        assert all(position[one] < position[other] for one, other in plan.graph.edges)


@settings(max_examples=50, deadline=None)
@given(strategies.plans())
def test_waves_respect_every_edge_and_hold_every_step_once(plan):
    wave = {step.id: number for number, steps in enumerate(plan.waves()) for step in steps}

    assert sorted(wave) == sorted(plan.steps)
    assert all(wave[one] < wave[other] for one, other in plan.graph.edges)


@settings(max_examples=50, deadline=None)
@given(strategies.plans())
def test_a_plan_comes_back_from_json(plan):
    assert Plan.from_json(plan.to_json()) == plan


@settings(max_examples=50, deadline=None)
@given(strategies.plans())
def test_the_critical_path_is_a_chain_as_long_as_the_plan(plan):
    path = plan.critical_path()

    assert all(plan.graph.has_edge(one.id, other.id) for one, other in pairwise(path))
    assert sum(step.estimate.seconds for step in path) == pytest.approx(plan.length())


@settings(max_examples=50, deadline=None)
@given(strategies.plans())
def test_without_limits_a_simulation_takes_as_long_as_the_critical_path(plan):
    assert simulate(plan, {}).makespan == pytest.approx(plan.length())


@settings(max_examples=50, deadline=None)
@given(strategies.plans(), strategies.limits())
def test_a_simulation_runs_every_step_once_and_never_beats_its_lower_bound(plan, limits):
    schedule = simulate(plan, limits, workers=2)

    assert sorted(slot.step.id for slot in schedule.slots) == sorted(plan.steps)
    assert schedule.makespan >= schedule.lower_bound - 1e-9


def test_uploads_are_predicted_to_share_the_bandwidth_and_run_at_once_all_the_same(shop):
    plan = plan_backup(shop, select(shop))
    sent = sum(step.estimate.size for step in plan.steps.values() if step.verb is Verb.UPLOAD)

    def most_at_once(limits):
        slots = [slot for slot in simulate(plan, limits).slots if slot.step.verb is Verb.UPLOAD]
        return max(sum(one.start <= at.start < one.finish for one in slots) for at in slots)

    assert simulate(plan, predicted_limits(shop)).makespan >= sent / MiB
    assert (most_at_once(predicted_limits(shop)), most_at_once(limits_of(shop)) > 1) == (1, True)


@settings(max_examples=50, deadline=None)
@given(strategies.plans())
def test_one_worker_takes_the_sum_of_all_steps(plan):
    total = sum(step.estimate.seconds for step in plan.steps.values())

    assert simulate(plan, {}, workers=1).makespan == pytest.approx(total)
