"""Plans of drills, and what is made of how they went."""

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.errors import UnsupportedError
from vmkeep.fleet import loads, select
from vmkeep.operations.drilled import drilled_vms, measure, require_drillable
from vmkeep.operations.report import RunReport
from vmkeep.planning import Execution, Facts, Outcome, State, Verb, plan_drill, still_done

TEXT = """\
version: 1
fleet: shop
repository: {store: ./backups, key: {env: KEY}}
hypervisors: {rack1: {driver: libvirt, uri: "qemu:///system"}, shelf: {driver: images, path: .}}
defaults: {hypervisor: rack1, guest: {agent: true}}
vms:
  db1: {disks: [{name: root, size: 1GiB}]}
  app1: {depends_on: [db1], disks: [{name: root, size: 1GiB}]}
  web1: {depends_on: [app1], disks: [{name: root, size: 1GiB}]}
  mail: {disks: [{name: root, size: 1GiB}]}
  old: {hypervisor: shelf, guest: {agent: false}, disks: [{name: root, size: 1GiB}]}
objectives:
  shop: {vms: [web1], rto: 10m}
  post: {vms: [mail], rpo: 1d}
"""
SHELF = Facts(powered_off=frozenset({"shelf"}))


@pytest.fixture(scope="module")
def shop():
    return loads(TEXT).fleet


def planned(shop, *targets):
    vms = drilled_vms(shop, targets)
    return plan_drill(shop, select(shop, vms, with_dependencies=True), SHELF)


def before(plan, step):
    return nx.ancestors(plan.graph, step)


def test_a_service_brings_all_that_it_depends_on(shop):
    plan = planned(shop, "shop")

    assert {step.vms[0] for step in plan.steps.values() if step.verb is Verb.HEALTH} == {
        "db1",
        "app1",
        "web1",
    }


def test_without_targets_all_services_are_drilled_or_else_the_fleet(shop):
    without = loads(TEXT[: TEXT.index("objectives:")]).fleet

    assert drilled_vms(shop, ()) == ["web1", "mail"]
    assert drilled_vms(without, ()) == ["db1", "app1", "web1", "mail", "old"]


def test_a_component_cannot_be_drilled(shop):
    with pytest.raises(UnsupportedError, match="write db1, not db1/os"):
        drilled_vms(shop, ["db1/os"])


def test_no_vm_is_created_before_its_network_and_none_goes_before_its_dependents(shop):
    plan = planned(shop, "shop")

    assert {"isolate rack1", "place db1"} <= before(plan, "configure db1")
    assert "health db1" in before(plan, "start app1")
    assert {"remove web1", "remove app1"} <= before(plan, "remove db1")
    assert {"remove web1", "remove app1", "remove db1"} <= before(plan, "remove network of rack1")


def test_what_cannot_be_started_has_no_network_and_is_removed_all_the_same(shop):
    plan = planned(shop, "old")

    assert {"health old", "remove old"} <= set(plan.steps)
    assert not {step.verb for step in plan.steps.values()} & {Verb.ISOLATE, Verb.START}


def test_a_vm_that_runs_from_its_recovery_point_waits_for_no_data(shop):
    chosen = select(shop, drilled_vms(shop, ["shop"]), with_dependencies=True)
    plan = plan_drill(shop, chosen, SHELF, instant={"db1", "web1"})

    assert {step.id for step in plan.steps.values() if step.verb in {Verb.SERVE, Verb.RESTORE}} == {
        "serve db1", "serve web1", "restore app1/os",
    }  # fmt: skip
    assert {"configure db1", "serve db1"} <= before(plan, "start db1")
    assert "serve db1" in before(plan, "remove db1")
    assert not any(step.verb is Verb.STREAM for step in plan.steps.values())


@given(choices=st.randoms(use_true_random=False), cancelled=st.booleans())
def test_whatever_fails_all_that_was_made_is_removed_in_the_end(shop, choices, cancelled):
    plan = planned(shop)
    execution = Execution(plan, {})
    ran = []
    while not execution.over:
        for step in execution.ready():
            if step.verb is Verb.REMOVE:
                over = set(execution.outcomes)
                assert before(plan, step.id) <= over
            ran.append(step.id)
            failed = step.verb is not Verb.REMOVE and choices.random() < 0.2
            execution.finish(step.id, Outcome.failed("by chance") if failed else Outcome.succeeded())
        if cancelled and choices.random() < 0.2:
            execution.cancel("enough")

    removals = {step.id for step in plan.steps.values() if step.verb is Verb.REMOVE}
    assert removals <= set(ran)
    assert all(execution.outcomes[name].state is State.SUCCEEDED for name in removals)


def went(plan, failing=(), seconds=60.0):
    """Return the report of a walk in which the steps *failing* fail, and each other takes so long."""
    execution, moment, after = Execution(plan, {}), 0.0, {}
    while not execution.over:
        for step in execution.ready():
            moment += seconds
            after[step.id] = moment
            failed = step.id in failing
            execution.finish(step.id, Outcome.failed("no boot device") if failed else Outcome.succeeded())
    return RunReport("r", "drill", plan, execution.summary(), execution.outcomes, {}, {}, moment, after)


def measured(shop, plan, **how):
    report = went(plan, **how)
    return report, measure(shop, report, {vm: f"session-{vm}" for vm in shop.vms})


def test_a_vm_that_does_not_come_back_blocks_its_dependents_and_nobody_else(shop):
    _, result = measured(shop, planned(shop), failing={"health app1"}, seconds=1.0)

    assert {one.vm: one.passed for one in result.vms} == {
        "db1": True, "app1": False, "web1": False, "mail": True,
    }  # fmt: skip
    assert {one.name: one.verdict for one in result.services} == {"shop": "failed", "post": "passed"}
    assert result.verdict == "failed"
    assert next(one for one in result.vms if one.vm == "app1").reason == "no boot device"


def test_a_service_takes_as_long_as_the_last_of_its_vms(shop):
    report, result = measured(shop, planned(shop, "shop"), seconds=1.0)

    (service,) = result.services
    assert service.vms == ("db1", "app1", "web1")
    assert service.seconds == report.after["health web1"]
    assert service.verdict == "met"


def test_a_service_that_is_back_too_late_is_no_success(shop):
    plan = planned(shop)
    report, result = measured(shop, plan)
    report = RunReport(**{name: getattr(report, name) for name in report.__slots__} | {"drill": result})

    assert result.verdict == "missed objective"
    assert "shop took" in result.sentence
    assert report.summary.complete
    assert report.exit_code == 3


def test_a_drill_that_failed_is_never_called_partial(shop):
    report, _ = measured(shop, planned(shop), failing={"health web1"})

    assert report.exit_code == 1


def test_nothing_of_a_drill_is_continued(shop):
    plan = planned(shop)

    assert still_done(plan, {name: Outcome.succeeded() for name in plan.steps}) == frozenset()


def test_a_vm_that_nobody_can_look_into_is_refused_before_anything_is_touched():
    mute = loads(TEXT.replace("db1: {disks", "db1: {guest: {agent: false}, disks")).fleet

    with pytest.raises(UnsupportedError, match=r"VM db1: .*guest agent"):
        require_drillable(mute, ["db1", "app1", "old"], SHELF)
