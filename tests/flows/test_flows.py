"""Flows generated from a fleet, run by a real Prefect engine and server."""

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from vmkeep import fleet as fleets
from vmkeep.errors import InputError, SourceChangedError, TemporaryError
from vmkeep.fleet import lookup
from vmkeep.operations import backup, repositories, steps
from vmkeep.operations.retry import attempts
from vmkeep.planning import Verb
from vmkeep.repository import Repository
from vmkeep.testing.faults import Fault
from vmkeep.testing.site import faulty

pytestmark = pytest.mark.integration


def run(site, operation, **how):
    from flows.run import run_flow  # noqa: PLC0415  (Prefect reads its settings when it is imported)

    return run_flow(site.request(operation, **how))


def flow_state(site, operation, **parameters):
    from flows.generate import generate  # noqa: PLC0415

    return generate(site.file, operation)(**parameters, return_state=True)


def latest_run():
    from prefect.client.orchestration import get_client  # noqa: PLC0415
    from prefect.client.schemas.sorting import FlowRunSort  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        return client.read_flow_runs(sort=FlowRunSort.END_TIME_DESC, limit=1)[0]


def task_runs(flow_run, least):
    from prefect.client.orchestration import get_client  # noqa: PLC0415
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId  # noqa: PLC0415
    from prefect.client.schemas.sorting import TaskRunSort  # noqa: PLC0415

    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
    with get_client(sync_client=True) as client:
        for _ in range(600):  # the server records task runs from events, a little later
            found = client.read_task_runs(flow_run_filter=chosen, sort=TaskRunSort.NAME_ASC, limit=200)
            if len(found) >= least and all(one.end_time for one in found):
                return {one.name: one for one in found}
            time.sleep(0.1)
    raise AssertionError([one.name for one in found])


def test_the_same_steps_give_the_same_result_as_without_prefect(site):
    assert run(site, "backup").exit_code == 0
    before = site.digest("db1")
    site.image("db1").unlink()

    report = run(site, "restore", overwrite=True)

    assert report.exit_code == 0
    assert site.digest("db1") == before


def test_a_request_may_name_more_than_the_form_offers(site):
    report = run(site, "backup", targets=["db1/filesystems", "app*"])

    assert report.exit_code == 0
    assert {step for step in report.plan.steps if step.startswith("backup ")} == {
        "backup db1/filesystems.data",
        "backup app1/os",
    }


def test_an_unknown_target_is_bad_input_and_no_fault_of_the_server(site):
    with pytest.raises(InputError, match="did you mean 'db1'"):
        run(site, "backup", targets=["db11"])


def test_task_runs_are_called_like_the_steps_and_linked_like_the_plan(site):
    report = run(site, "backup")

    found = task_runs(latest_run(), len(report.plan.steps))
    assert set(found) == set(report.plan.steps)
    names = {one.id: name for name, one in found.items()}
    linked = {
        (names[source.id], name)
        for name, one in found.items()
        for source in one.task_inputs.get("wait_for", [])
    }
    assert linked == set(report.plan.graph.edges)


def test_the_state_of_the_flow_is_what_happened(site):
    assert flow_state(site, "backup").is_completed()
    site.image("app1").unlink()

    state = flow_state(site, "backup")

    assert state.is_failed()
    assert state.name == "Partial"
    assert "steps failed" in state.message


def test_bad_input_fails_the_flow_and_touches_nothing(site):
    site.run("backup")
    site.write("db1", seed="later")
    now = site.digest("db1")

    with pytest.raises(InputError, match="--overwrite"):
        run(site, "restore")

    assert site.digest("db1") == now


def counting(monkeypatch, error):
    tries = []

    def save(_run, step, _progress):
        tries.append(step.id)
        raise error

    monkeypatch.setitem(steps._BACKUP, Verb.BACKUP, save)
    return tries


def test_temporary_errors_are_tried_again(site, monkeypatch):
    tries = counting(monkeypatch, TemporaryError("away"))
    import tasks.steps  # noqa: PLC0415

    quick = tasks.steps.TASKS[Verb.BACKUP].with_options(retry_delay_seconds=[0.01] * 3)
    monkeypatch.setitem(tasks.steps.TASKS, Verb.BACKUP, quick)

    report = run(site, "backup", targets=["app1"])

    assert tries == ["backup app1/os"] * attempts(Verb.BACKUP)
    assert report.exit_code == 5


def test_other_errors_are_not(site, monkeypatch):
    tries = counting(monkeypatch, SourceChangedError("it ran"))

    run(site, "backup", targets=["app1"])

    assert tries == ["backup app1/os"]


def test_a_flow_run_that_is_tried_again_repeats_only_what_failed(site, monkeypatch):
    from prefect import flow  # noqa: PLC0415

    from flows.generate import carry_out, threads  # noqa: PLC0415

    real, tried, reports = backup.save, [], []

    def save(run, step, progress):
        tried.append(step.id)
        if step.component == "filesystems.data" and tried.count(step.id) == 1:
            raise SourceChangedError("it ran")
        return real(run, step, progress)

    monkeypatch.setitem(steps._BACKUP, Verb.BACKUP, save)

    @flow(task_runner=threads())
    def twice():
        request = site.request("backup")
        return [carry_out(request, ended=reports.append), carry_out(request, ended=reports.append)][1]

    assert twice(return_state=True).is_completed()
    assert tried.count("backup app1/os") == 1
    assert reports[0].run == reports[1].run
    assert [point.complete for point in site.points("db1")] == [False, True]


def test_an_upload_is_retried_without_reading_the_vm_again(site, monkeypatch):
    seen = []

    def once(request):
        if request.key.startswith("packs/") and request.verb == "put":
            if threading.current_thread().name.startswith("vmkeep-upload"):
                return Fault.AWAY  # nobody waits for what is put in the background
            seen.append(request)
            return Fault.AWAY if len(seen) == 1 else None
        return None

    monkeypatch.setattr(repositories, "store_of", faulty(once))
    import tasks.steps  # noqa: PLC0415

    quick = tasks.steps.TASKS[Verb.UPLOAD].with_options(retry_delay_seconds=[0.01] * 3)
    monkeypatch.setitem(tasks.steps.TASKS, Verb.UPLOAD, quick)
    report = run(site, "backup", targets=["app1"])

    found = task_runs(latest_run(), len(report.plan.steps))
    assert report.exit_code == 0
    assert (found["backup app1/os"].run_count, found["upload app1/os"].run_count) == (1, 2)


def test_the_form_offers_the_names_of_this_fleet(site):
    from prefect.utilities.callables import parameter_schema  # noqa: PLC0415

    from flows.generate import generate  # noqa: PLC0415

    form = parameter_schema(generate(site.file, "restore")).model_dump_for_openapi()["properties"]

    assert form["vms"]["items"]["enum"] == ["db1", "app1"]
    assert form["components"]["items"]["enum"] == ["os", "filesystems", "filesystems.data"]
    assert "Replace VMs that exist" in form["overwrite"]["description"]


def test_a_backup_outside_of_its_windows_is_made_if_the_form_says_so(site):
    hour = datetime.now(UTC) + timedelta(hours=12)
    window = f'{{start: "{hour:%H}:00", end: "{hour:%H}:01"}}'
    text = site.path.read_text().replace("0 1 * * *", f"0 {hour:%H} * * *").replace("Europe/Berlin", "UTC")
    site.path.write_text(f"{text}windows: {{night: {window}}}\n")

    refused = flow_state(site, "backup")
    assert refused.is_failed()
    assert "no window for backups is open now" in str(refused.message) + str(
        refused.result(raise_on_failure=False)
    )
    assert flow_state(site, "backup", any_time=True).is_completed()


def test_a_report_is_left_as_an_artifact(site):
    from prefect.client.orchestration import get_client  # noqa: PLC0415

    run(site, "backup")

    with get_client(sync_client=True) as client:
        artifact = client.request("GET", "/artifacts/{key}/latest", path_params={"key": "site-backup"}).json()
    assert "seal db1" in artifact["data"]
    assert "```mermaid" in artifact["data"]


def test_secrets_are_read_from_prefect_blocks(site, monkeypatch):
    from prefect.blocks.system import Secret  # noqa: PLC0415

    Secret(value=(site.folder / "key").read_text()).save("site-key", overwrite=True)
    text = site.path.read_text().replace("key: {file: ./key}", "key: {prefect_secret: site-key}")
    site.path.write_text(text)
    monkeypatch.delitem(lookup.resolvers, "prefect_secret", raising=False)

    assert fleets.load(site.path).fleet.repository.key.prefect_secret == "site-key"
    assert run(site, "backup", targets=["app1"]).exit_code == 0


def test_the_progress_of_a_long_step_is_an_artifact(site, monkeypatch):
    from prefect.client.orchestration import get_client  # noqa: PLC0415

    monkeypatch.setattr("tasks.progress._WORTH", 1)

    run(site, "backup", targets=["app1"])

    with get_client(sync_client=True) as client:
        path = "/artifacts/{key}/latest"
        artifact = client.request("GET", path, path_params={"key": "backup-app1-os"}).json()
    assert (artifact["type"], artifact["data"]) == ("progress", 100.0)


def test_events_tell_automations_what_was_sealed_and_what_was_not(site):
    from prefect.client.orchestration import get_client  # noqa: PLC0415

    site.image("app1").unlink()
    report = run(site, "backup")

    wanted = {("vmkeep.point.sealed", "db1"), ("vmkeep.point.failed", "app1"), ("vmkeep.backup.failed", "")}
    with get_client(sync_client=True) as client:
        for _ in range(600):  # events are written a little later
            found = client.request(
                "POST", "/events/filter", json={"filter": {"event": {"prefix": ["vmkeep."]}}, "limit": 50}
            ).json()["events"]
            mine = {
                (one["event"], one["payload"]["vm"]) for one in found if one["payload"]["run"] == report.run
            }
            if mine == wanted:
                return
            time.sleep(0.1)
    raise AssertionError(mine)


def test_recovery_points_are_copied_by_a_flow(site):
    text = site.path.read_text()
    copies = "key: {file: ./key}, copies: {nas: {store: ./nas, key: {file: ./key}}}"
    site.path.write_text(text.replace("key: {file: ./key}", copies))
    there = site.file.at("nas")
    Repository.init(repositories.store_of(there), repositories.secret_of(there)).close()
    site.run("backup")

    report = run(site, "copy")

    assert report.exit_code == 0
    with repositories.open_repository(there) as repository:
        assert {point.vm for point in repository.points()} == {"db1", "app1"}


def test_a_repository_is_pruned_by_a_flow(site):
    text = site.path.read_text()
    site.path.write_text(text.replace("key: {file: ./key}", "key: {file: ./key}, retention: {last: 1}"))
    for _ in range(2):
        site.run("backup")

    report = run(site, "prune", dead_after=60.0)

    assert report.exit_code == 0
    assert set(report.steps) == {"prune app1", "prune db1", "prune packs"}
    assert [len(site.points(vm)) for vm in ("db1", "app1")] == [1, 1]


def test_the_run_form_of_prune_offers_copies(site):
    text = site.path.read_text()
    copies = "key: {file: ./key}, copies: {nas: {store: ./nas, key: {file: ./key}}}"
    site.path.write_text(text.replace("key: {file: ./key}", copies))

    from flows import forms  # noqa: PLC0415

    form = forms.signature(site.file, "prune").parameters

    assert [*form] == ["dead_after", "repository", "fleet"]
    assert form["repository"].default == "primary"


@pytest.mark.parametrize("text", ["soon", "7"])
def test_a_form_with_a_duration_that_is_none_is_refused(site, text):
    from flows import forms  # noqa: PLC0415

    with pytest.raises(InputError, match="dead_after"):
        forms.request("prune", {"fleet": str(site.path), "dead_after": text})


def drill_events(report):
    from prefect.client.orchestration import get_client  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        for _ in range(600):  # events are written a little later
            found = client.request(
                "POST",
                "/events/filter",
                json={"filter": {"event": {"prefix": ["vmkeep.drill."]}}, "limit": 50},
            ).json()["events"]
            mine = [one["event"] for one in found if one["payload"]["run"] == report.run]
            if mine:
                return mine
            time.sleep(0.1)
    raise AssertionError(report.run)


def with_service(site, rto):
    site.path.write_text(site.path.read_text() + f"objectives: {{shop: {{vms: [app1], rto: {rto}}}}}\n")
    site.run("backup")


def test_a_service_is_drilled_by_a_flow_which_tells_what_was_proven(site):
    from prefect.client.orchestration import get_client  # noqa: PLC0415

    with_service(site, "1h")
    report = run(site, "drill", targets=["shop"])

    assert report.exit_code == 0
    assert drill_events(report) == ["vmkeep.drill.passed"]
    with get_client(sync_client=True) as client:
        artifact = client.request("GET", "/artifacts/{key}/latest", path_params={"key": "site-drill"}).json()
    assert "| shop | " in artifact["data"]
    assert " | 1h 00m | met |" in artifact["data"]


def test_a_drill_that_took_too_long_is_a_failed_flow_run_with_a_name_of_its_own(site):
    with_service(site, "1ms")
    state = flow_state(site, "drill")

    assert state.is_failed()
    assert state.name == "MissedObjective"
    assert "shop took" in state.message
    assert not list((site.folder / "images").glob("*drill*"))


def test_a_drill_that_failed_is_told_to_automations(site, monkeypatch):
    with_service(site, "1h")
    monkeypatch.setitem(steps._DRILL, Verb.HEALTH, failing_with(SourceChangedError("no boot device")))
    report = run(site, "drill")

    assert report.exit_code == 1
    assert drill_events(report) == ["vmkeep.drill.failed"]


def failing_with(error):
    def body(_run, _step, _progress):
        raise error

    return body


def test_the_run_form_of_a_drill_offers_services_and_vms(site):
    from flows import forms  # noqa: PLC0415

    with_service(site, "1h")
    form = forms.signature(site.file, "drill").parameters

    assert [*form] == ["targets", "at", "points", "instant", "fleet"]
    assert form["targets"].annotation.__args__[0].__args__ == ("shop", "db1", "app1")


def test_the_deployed_drill_takes_what_its_form_offers(site):
    from flows.drill import drill  # noqa: PLC0415

    with_service(site, "1h")

    assert drill(str(site.path), targets=["db1"], return_state=True).is_completed()
