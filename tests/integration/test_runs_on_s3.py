"""A whole run from the fleet file to a real S3 service and back."""

import time

import pytest

from vmkeep.testing.site import FLEET, Site
from vmkeep.units import MiB

pytestmark = pytest.mark.integration


@pytest.fixture
def site_on_s3(tmp_path, monkeypatch, seaweed):
    """A small fleet whose repository is in a bucket; its credentials lie in a file."""
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "s3").write_text(f"{seaweed.options.access_key}:{seaweed.options.secret_key}\n")
    s3 = f'{{endpoint_url: "{seaweed.endpoint_url}", region: us-east-1, credentials: {{file: ./s3}}}}'
    store = f"store: s3://{seaweed.new_bucket()}/prod, s3: {s3}"
    return Site(folder, text=FLEET.replace("store: ./repository", store))


def test_a_fleet_is_saved_to_s3_and_restored_byte_for_byte(site_on_s3):
    site = site_on_s3
    before = site.digest("db1"), site.digest("db1", "data"), site.digest("app1")
    assert site.run("backup").exit_code == 0
    site.write("db1", seed="later")
    site.image("app1").unlink()

    assert site.run("restore", overwrite=True).exit_code == 0

    assert (site.digest("db1"), site.digest("db1", "data"), site.digest("app1")) == before


def test_a_second_backup_to_s3_stores_only_what_changed(site_on_s3):
    site = site_on_s3
    site.run("backup")
    site.write("db1", "data", seed="later")

    report = site.run("backup")

    stored = {step: one.stored for step, one in report.steps.items() if step.startswith("backup ")}
    assert {step for step, size in stored.items() if size} == {"backup db1/filesystems.data"}


def test_a_backup_sends_no_faster_than_the_fleet_allows(site_on_s3):
    site = site_on_s3
    site.path.write_text(site.path.read_text() + "limits: {bandwidth: 2MiB/s}\n")
    begun = time.monotonic()

    report = site.run("backup")

    stored = sum(one.stored for step, one in report.steps.items() if step.startswith("backup "))
    assert stored > 4 * MiB
    assert time.monotonic() - begun >= (stored - MiB) / (2 * MiB)


def test_what_is_in_the_bucket_is_verified(site_on_s3):
    site_on_s3.run("backup")

    assert site_on_s3.run("verify").exit_code == 0
