"""A real Prefect server with a worker: deployments, schedules, runs from the UI, its pages in a browser."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from vmkeep.testing.site import Site

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A small fleet, and a server and worker as `vmkeep up` starts them."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VMKEEP_STATE", str(folder / "state"))
        patched.delenv("PREFECT_API_URL", raising=False)
        patched.delenv("PREFECT_HOME", raising=False)
        from deployments import local  # noqa: PLC0415

        running = local.up(port=0)
        try:
            patched.setenv("PREFECT_API_URL", running.url)
            yield Site(folder)
        finally:
            local.down()
            assert local.status() is None
            shutil.rmtree(Path(tempfile.gettempdir()) / "runner_storage")  # Prefect's worker leaves it


@pytest.fixture(scope="module")
def deployed(site):
    """The fleet's deployments."""
    from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: PLC0415

    from deployments.sync import deploy  # noqa: PLC0415

    with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}):
        yield {one.name.split("/")[0]: one for one in deploy(site.file)}


def client():
    from prefect.client.orchestration import get_client  # noqa: PLC0415

    return get_client(sync_client=True)


def start(name, **parameters):
    """Start a run as the button in the UI does."""
    with client() as api:
        deployment = api.read_deployment_by_name(f"{name}/{name}")
        return api.create_flow_run_from_deployment(deployment.id, parameters=parameters)


def ended(flow_run, limit_s=300, *, run_count=1):
    with client() as api:
        limit = time.monotonic() + limit_s
        while time.monotonic() < limit:
            found = api.read_flow_run(flow_run.id)
            if found.state.is_final() and found.run_count >= run_count:
                return found
            time.sleep(0.5)
    raise AssertionError(found.state)


def test_every_operation_has_a_deployment_with_its_schedule(deployed):
    assert set(deployed) == {
        f"site-{one}" for one in ("backup", "configure", "restore", "drill", "verify", "prune")
    }
    assert deployed["site-backup"].schedule == "0 1 * * * Europe/Berlin"


@pytest.mark.usefixtures("deployed")
def test_the_scheduler_plans_the_next_runs():
    from prefect.client.schemas.filters import (  # noqa: PLC0415
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType  # noqa: PLC0415
    from prefect.client.schemas.sorting import FlowRunSort  # noqa: PLC0415

    scheduled = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    )
    with client() as api:
        for _ in range(120):
            found = api.read_flow_runs(
                flow_run_filter=scheduled, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=5
            )
            if found:
                return
            time.sleep(0.5)
    raise AssertionError("no run was scheduled within a minute")


@pytest.mark.usefixtures("deployed")
def test_an_unchanged_fleet_changes_nothing_and_a_changed_one_only_what_it_must(site):
    from deployments.sync import deploy  # noqa: PLC0415

    assert {one.change for one in deploy(site.file)} == {"unchanged"}
    text = site.path.read_text()
    site.path.write_text(text.replace('"0 1 * * *"', '"30 1 * * *"'))
    changes = {one.name.split("/")[0]: one.change for one in deploy(site.file)}
    site.path.write_text(text)
    deploy(site.file)

    assert changes.pop("site-backup") == "updated"
    assert set(changes.values()) == {"unchanged"}


@pytest.mark.usefixtures("deployed")
def test_a_run_from_the_ui_makes_a_recovery_point(site):
    run = ended(start("site-backup", vms=["app1"]))

    assert (run.state.name, run.name) == ("Completed", "backup app1")
    assert [point.complete for point in site.points("app1")] == [True]


@pytest.mark.usefixtures("deployed")
def test_a_value_that_the_form_does_not_offer_is_refused():
    from prefect.exceptions import PrefectHTTPStatusError  # noqa: PLC0415

    with pytest.raises(PrefectHTTPStatusError, match="Validation failed"):
        start("site-backup", vms=["nobody"])


@pytest.mark.usefixtures("deployed")
def test_a_partial_run_says_so_and_its_retry_completes_it(site):
    from prefect.states import AwaitingRetry  # noqa: PLC0415

    hidden = site.image("db1", "data").with_suffix(".away")
    content = site.image("db1", "data").read_bytes()
    site.image("db1", "data").rename(hidden)
    first = start("site-backup")
    partial = ended(first)
    site.image("db1", "data").write_bytes(content)

    with client() as api:
        api.set_flow_run_state(first.id, AwaitingRetry(), force=True)
    again = ended(first, run_count=2)

    assert partial.state.name == "Partial"
    assert again.state.name == "Completed"
    assert site.points("db1")[-1].complete


@pytest.fixture(scope="module")
def page():
    """A page of Debian's Chromium, or of Playwright's own where there is none."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium", path="/usr/bin"),
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser.new_page(viewport={"width": 1500, "height": 1000})
        browser.close()


@pytest.mark.usefixtures("deployed")
def test_the_run_form_in_the_browser_offers_the_vms_of_this_fleet(site, page):
    with client() as api:
        deployment = api.read_deployment_by_name("site-restore/site-restore")

    page.goto(
        f"{os.environ['PREFECT_API_URL'].removesuffix('/api')}/deployments/deployment/{deployment.id}/run"
    )
    page.get_by_text("Which VMs; none means all.").wait_for(timeout=60_000)
    page.locator("button.p-select-button__control").first.focus()
    page.keyboard.press("Space")

    for vm in site.file.fleet.vms:
        page.get_by_text(vm, exact=True).first.wait_for(timeout=60_000)


@pytest.mark.usefixtures("deployed")
def test_the_page_of_a_run_names_its_steps(page):
    run = ended(start("site-backup", vms=["app1"]))

    page.goto(f"{os.environ['PREFECT_API_URL'].removesuffix('/api')}/runs/flow-run/{run.id}")
    page.get_by_text("Task Runs").first.click(timeout=60_000)

    for step in ("snapshot app1", "backup app1/os", "upload app1/os", "seal app1"):
        page.get_by_text(step, exact=True).first.wait_for(timeout=60_000)
