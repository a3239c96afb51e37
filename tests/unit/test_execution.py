"""Execution: tokens, urgency, failures, cancelling, resuming; whatever happens, everything ends."""

from __future__ import annotations

from collections import Counter

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmkeep.errors import VmkeepError
from vmkeep.fleet import loads, select
from vmkeep.planning import (
    Estimate,
    Execution,
    Outcome,
    Plan,
    State,
    Step,
    Verb,
    plan_backup,
    plan_restore,
    still_done,
)
from vmkeep.testing import strategies

TEXT = """\
version: 1
fleet: shop
repository: {store: ./backups, key: {env: KEY}}
hypervisors: {h0: {driver: images, path: .}}
defaults: {hypervisor: h0}
vms:
  db1:
    disks: [{name: root, size: 1GiB}]
    components: {os: {}, databases: {orders: {engine: postgresql}}}
  app1: {depends_on: [db1], disks: [{name: root, size: 1GiB}]}
  other: {disks: [{name: root, size: 1GiB}]}
"""


@pytest.fixture
def shop():
    return loads(TEXT).fleet


def step(name, *, needs=(), after=(), seconds=1.0, resources=(), always=False):
    return Step(
        name,
        Verb.BACKUP,
        ("vm",),
        needs=frozenset(needs),
        after=frozenset(after),
        resources=resources,
        estimate=Estimate(seconds),
        always=always,
    )


def plan_of(*steps):
    return Plan.of("backup", "shop", steps)


def names(steps):
    return [one.id for one in steps]


def run(plan, *, failing=(), limits=None, finished=()):
    execution = Execution(plan, limits or {}, finished)
    while not execution.over:
        for one in execution.ready():
            execution.finish(one.id, Outcome.failed("broke") if one.id in failing else Outcome.succeeded())
    return execution


def states(execution):
    return {name: outcome.state.value for name, outcome in execution.outcomes.items()}


def test_the_longest_way_to_the_end_goes_first():
    plan = plan_of(step("short", seconds=3), step("long"), step("end", needs=["long"], seconds=9))

    assert names(Execution(plan, {}).ready()) == ["long", "short"]


def test_a_step_waits_for_its_tokens():
    execution = Execution(plan_of(*(step(name, resources=("disk",)) for name in "abc")), {"disk": 2})

    assert names(execution.ready()) == ["a", "b"]
    assert names(execution.ready()) == []
    execution.finish("a", Outcome.succeeded())
    assert names(execution.ready()) == ["c"]


def test_a_step_that_waits_for_a_token_does_not_hold_up_others():
    plan = plan_of(
        step("a", resources=("disk",), seconds=9),
        step("b", resources=("disk",), seconds=8),
        step("c", seconds=1),
    )

    assert names(Execution(plan, {"disk": 1}).ready()) == ["a", "c"]


def test_no_more_is_given_out_than_asked_for():
    execution = Execution(plan_of(step("a"), step("b")), {})

    assert [names(execution.ready(1)), names(execution.ready(0)), names(execution.ready(1))] == [
        ["a"],
        [],
        ["b"],
    ]


def test_what_needs_a_failed_step_is_skipped_with_the_reason():
    plan = plan_of(step("a"), step("b", needs=["a"]), step("c", needs=["b"]))

    execution = run(plan, failing=["a"])

    assert execution.outcomes["c"] == Outcome(State.SKIPPED, "needs a, which failed")


def test_what_only_waits_for_a_failed_step_still_runs():
    assert states(run(plan_of(step("a"), step("b", after=["a"])), failing=["a"]))["b"] == "succeeded"


def test_an_always_step_comes_after_all_before_it_is_over():
    plan = plan_of(step("a"), step("b"), step("c", needs=["a", "b"]), step("end", after=["c"], always=True))
    execution = Execution(plan, {})
    execution.ready()

    execution.finish("a", Outcome.failed("broke"))

    assert names(execution.ready()) == []  # b still runs, and it is before the end
    execution.finish("b", Outcome.succeeded())
    assert names(execution.ready()) == ["end"]


def test_cancelling_skips_what_does_not_run_but_for_always_steps():
    plan = plan_of(step("a"), step("b", needs=["a"]), step("end", after=["b"], always=True))
    execution = Execution(plan, {})
    execution.ready()

    execution.cancel("asked to")

    assert names(execution.ready()) == []
    execution.finish("a", Outcome.succeeded())
    assert names(execution.ready()) == ["end"]
    execution.finish("end", Outcome.succeeded())
    assert execution.summary().sentence == "2 of 3 steps succeeded, 1 skipped: cancelled: asked to"


def test_the_summary_counts_and_names_what_failed():
    plan = plan_of(step("a"), step("b", needs=["a"]), step("c"))

    summary = run(plan, failing=["a"]).summary()

    assert (summary.total, summary.succeeded, summary.failed, summary.skipped) == (3, 1, 1, 1)
    assert summary.sentence == "1 of 3 steps failed, 1 skipped: a: broke"
    assert not summary.complete


def test_the_summary_of_a_good_run_is_short():
    assert run(plan_of(step("a"))).summary().sentence == "1 of 1 steps succeeded"


def test_an_outcome_for_a_step_that_does_not_run_is_refused():
    with pytest.raises(VmkeepError, match="'a' has an outcome, but is not running"):
        Execution(plan_of(step("a")), {}).finish("a", Outcome.succeeded())


def test_a_limit_that_lets_nothing_through_is_refused():
    with pytest.raises(VmkeepError, match="limit disk is 0"):
        Execution(plan_of(step("a")), {"disk": 0})


def test_a_finished_step_that_is_not_in_the_plan_is_refused():
    with pytest.raises(VmkeepError, match="'z' is said to be finished"):
        Execution(plan_of(step("a")), {}, ["z"])


def test_a_finished_step_counts_only_if_all_before_it_is_finished():
    plan = plan_of(step("a"), step("b", needs=["a"]))

    assert names(Execution(plan, {}, ["b"]).ready()) == ["a"]
    assert names(Execution(plan, {}, ["a"]).ready()) == ["b"]


def test_a_failure_in_one_vm_leaves_the_backups_of_others_alone(shop):
    plan = plan_backup(shop, select(shop))

    after = states(run(plan, failing=["configure db1", "snapshot other"]))

    assert {name for name, state in after.items() if state == "skipped"} == {
        "snapshot db1", "backup db1/os", "upload db1/os", "backup db1/databases.orders",
        "upload db1/databases.orders",
        "backup other/os", "upload other/os",
    }  # fmt: skip


def test_a_closed_gate_keeps_only_the_dependents_from_starting(shop):
    after = states(run(plan_restore(shop, select(shop)), failing=["health db1"]))

    assert {name for name, state in after.items() if state == "skipped"} == {"start app1", "health app1"}


def test_a_run_that_was_killed_before_the_seal_repeats_only_the_upload_that_is_missing(shop):
    plan = plan_backup(shop, select(shop, ["db1"]))
    outcomes = dict(run(plan, failing=["upload db1/os"]).outcomes)
    del outcomes["seal db1"], outcomes["verify db1"]

    assert set(plan.steps) - still_done(plan, outcomes) == {"upload db1/os", "seal db1", "verify db1"}


def test_a_seal_that_missed_an_upload_decided_the_session_so_its_vm_is_saved_anew(shop):
    plan = plan_backup(shop, select(shop, ["db1", "other"]))
    first = run(plan, failing=["upload db1/os"])

    done = still_done(plan, first.outcomes)

    assert {name for name in done if "db1" in name} == {"configure db1"}
    assert "verify other" in done


def test_a_seal_that_failed_is_repeated_alone(shop):
    plan = plan_backup(shop, select(shop, ["db1"]))
    first = run(plan, failing=["seal db1"])

    assert set(plan.steps) - still_done(plan, first.outcomes) == {"seal db1", "verify db1"}


def test_a_failed_backup_takes_a_new_snapshot_because_the_old_one_is_gone(shop):
    plan = plan_backup(shop, select(shop, ["db1", "other"]))
    first = run(plan, failing=["backup db1/os"])

    done = still_done(plan, first.outcomes)

    assert {name for name in done if "db1" in name} == {"configure db1"}
    assert "verify other" in done


@settings(max_examples=200, deadline=None)
@given(strategies.plans(), strategies.limits(), st.data())
def test_whatever_happens_every_promise_holds(plan, limits, data):
    execution = Execution(plan, limits)
    running: dict[str, Step] = {}
    started: list[str] = []
    cancelled = False
    for _ in range(4 * len(plan) + 4):
        for one in execution.ready(data.draw(st.none() | st.integers(0, 2))):
            assert all(name in execution.outcomes for name in nx.ancestors(plan.graph, one.id))
            needed = all(execution.outcomes[name].state is State.SUCCEEDED for name in one.needs)
            assert one.always or (needed and not cancelled)
            started.append(one.id)
            running[one.id] = one
        held = Counter(token for one in running.values() for token in one.resources)
        assert all(held[token] <= limit for token, limit in limits.items())
        if running:
            name = data.draw(st.sampled_from(sorted(running)))
            del running[name]
            good = data.draw(st.booleans())
            execution.finish(name, Outcome.succeeded() if good else Outcome.failed("drawn"))
        if not cancelled and data.draw(st.integers(0, 9)) == 0:
            cancelled = True
            execution.cancel("drawn")
    while not execution.over:  # a draw of "at most 0" may have held it up: now take all there is
        given_out = execution.ready()
        started += names(given_out)
        running.update((one.id, one) for one in given_out)
        assert running, "nothing runs, nothing is ready, and it is not over"
        for name in sorted(running):
            execution.finish(name, Outcome.succeeded())
        running.clear()
    assert len(started) == len(set(started))
    assert {name for name, one in plan.steps.items() if one.always} <= set(started)
    assert set(execution.outcomes) == set(plan.steps)


@settings(max_examples=100, deadline=None)
@given(strategies.plans(), st.data())
def test_a_failure_skips_only_what_needs_it(plan, data):
    failing = data.draw(st.sets(st.sampled_from(sorted(plan.steps)), max_size=3))
    execution = run(plan, failing=failing)
    required = nx.DiGraph((a, b) for a, b, needed in plan.graph.edges(data="required") if needed)
    required.add_nodes_from(plan.steps)

    for name, outcome in execution.outcomes.items():
        if outcome.state is State.SKIPPED:
            assert nx.ancestors(required, name) & failing


@settings(max_examples=60, deadline=None)
@given(strategies.fleets(most_vms=5), st.data())
def test_a_second_run_of_a_backup_ends_complete_and_repeats_nothing_that_counts(fleet, data):
    plan = plan_backup(fleet, select(fleet))
    failing = data.draw(st.sets(st.sampled_from(sorted(plan.steps)), max_size=3))
    done = still_done(plan, run(plan, failing=failing).outcomes)

    second = Execution(plan, {}, done)

    assert set(second.outcomes) == done
    assert run(plan, finished=done).summary().complete
