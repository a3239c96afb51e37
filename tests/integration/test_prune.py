"""`vmkeep prune`: the fleet's retention, on a real repository; and collecting in a real S3 service."""

import contextlib
import json
import random

import pytest

from vmkeep.cli import main
from vmkeep.operations import repositories
from vmkeep.repository import Repository
from vmkeep.stores import open_store
from vmkeep.testing.repositories import KEY, backup, contents
from vmkeep.testing.site import FLEET
from vmkeep.units import MiB

pytestmark = pytest.mark.integration


@pytest.fixture
def saved(site):
    """The fleet saved three times, each time with other data; `last: 2` is declared."""
    site.path.write_text(FLEET.replace("key: {file: ./key}}", "key: {file: ./key}, retention: {last: 2}}"))
    for number in range(3):
        for disk in ("root", "data"):  # both: components that are saved at once may share a pack
            site.write("db1", disk, seed=f"data {number}")
        assert site.run("backup").exit_code == 0
    return site


def prune(site, capfd, *options):
    capfd.readouterr()
    assert main(["prune", "-f", str(site.path), *options]) == 0
    return capfd.readouterr()


def test_what_is_not_kept_is_forgotten_and_its_space_is_free(saved, capfd):
    before, digest = saved.points("db1"), saved.digest("db1", "data")

    told = json.loads(prune(saved, capfd, "--json").out)

    assert saved.points("db1") == before[1:]
    assert [one["reasons"] for one in told["points"] if one["vm"] == "db1"] == [
        [], ["last"], ["last", "newest complete point"],
    ]  # fmt: skip
    assert told["freed"] > 2 * MiB  # the data that only the first point had
    saved.write("db1", "data", seed="destroyed")
    assert saved.run("restore", overwrite=True).exit_code == 0
    assert saved.digest("db1", "data") == digest
    assert saved.run("verify").exit_code == 0


def test_a_dry_run_says_the_same_and_changes_nothing(saved, capfd):
    before = sorted(str(path) for path in saved.folder.rglob("*"))

    expected = json.loads(prune(saved, capfd, "--dry-run", "--json").out)

    assert sorted(str(path) for path in saved.folder.rglob("*")) == before
    done = json.loads(prune(saved, capfd, "--json").out)
    assert (expected["points"], expected["freed"]) == (done["points"], done["freed"])
    assert (expected["dry_run"], done["dry_run"]) == (True, False)


def test_people_see_what_is_kept_and_why(saved, capfd):
    told = prune(saved, capfd).out

    assert "forgotten" in told
    assert "last, newest complete point" in told
    assert "4 recovery point(s) kept, 2 forgotten; freed " in told


def test_sparse_packs_are_rewritten_and_it_is_said(site, capfd):
    site.path.write_text(FLEET.replace("key: {file: ./key}}", "key: {file: ./key}, retention: {last: 1}}"))
    overwrite(site.image("db1", "data"), 0, 7 * MiB)
    site.run("backup", targets=["db1"])
    overwrite(site.image("db1", "data"), 0, 6 * MiB)
    site.run("backup", targets=["db1"])
    digest = site.digest("db1", "data")

    expected = json.loads(prune(site, capfd, "--dry-run", "--json").out)
    told = prune(site, capfd).out

    assert expected["repacked"]
    assert expected["freed"] - expected["rewritten"] > 6 * MiB
    assert "sparse pack(s) are written anew" in told
    site.write("db1", "data", seed="destroyed")
    site.run("restore", targets=["db1"], overwrite=True)
    assert site.digest("db1", "data") == digest
    assert site.run("verify", targets=["db1"]).exit_code == 0


def overwrite(path, start, length):
    with path.open("r+b") as file:
        file.seek(start)
        file.write(random.randbytes(length))


def test_with_0_percent_no_pack_is_rewritten(site, capfd):
    text = FLEET.replace("key: {file: ./key}}", "key: {file: ./key}, retention: {last: 1}, repack: 0%}")
    site.path.write_text(text)
    for _ in range(2):
        overwrite(site.image("db1", "data"), 0, 7 * MiB)
        site.run("backup", targets=["db1"])

    assert json.loads(prune(site, capfd, "--json").out)["repacked"] == 0


def test_without_retention_all_is_kept(saved, capfd):
    saved.path.write_text(FLEET)

    told = json.loads(prune(saved, capfd, "--json").out)

    assert all(one["kept"] for one in told["points"])
    assert len(saved.points("db1")) == 3


def test_the_points_of_another_fleet_are_left_alone(saved, capfd):
    saved.path.write_text(saved.path.read_text().replace("fleet: site", "fleet: other"))

    assert json.loads(prune(saved, capfd, "--json").out)["points"] == []

    assert len(saved.points("db1")) == 3


def test_who_is_waited_for_is_named(saved, capfd, tmp_path):
    with repositories.open_repository(saved.file) as repository:
        session = repository.begin(vm="db1", run="slow", spool=tmp_path / "spool")

        told = prune(saved, capfd)
        session.close()

    assert "freed 0 B" in told.out
    assert f"session {session.id}" in told.err
    assert "freed 0 B" not in prune(saved, capfd, "--dead-after", "0s").out


def test_a_duration_that_is_none_ends_with_2(site, capfd):
    assert main(["prune", "-f", str(site.path), "--dead-after", "soon"]) == 2
    assert "--dead-after" in capfd.readouterr().err


def test_validate_says_that_nothing_is_pruned_by_itself(saved, capfd):
    text = saved.path.read_text().replace("schedules: {", 'schedules: {prune: {cron: "0 8 * * *"}, ')
    saved.path.write_text(text)

    assert main(["validate", "-f", str(saved.path)]) == 0

    told = capfd.readouterr().err
    assert "'vmkeep prune' removes" in told
    assert "schedules.prune: no deployment is made for it" in told


def test_a_repository_in_s3_is_collected(seaweed, tmp_path):
    with contextlib.closing(open_store(f"s3://{seaweed.new_bucket()}/prod", s3=seaweed.options)) as store:
        repository = Repository.init(store, KEY)
        disks = [{"root": random.Random(seed).randbytes(3 * MiB)} for seed in (1, 2)]
        old, new = (
            backup(repository, tmp_path / "spool", disk, run=f"run-{number}")
            for number, disk in enumerate(disks)
        )
        repository.forget(old, "retention")

        done = Repository.open(store, KEY).collect()

        assert done.size > 3 * MiB
        assert contents(Repository.open(store, KEY), new) == disks[1]
        assert [info.key.partition("/")[0] for info in store.list("points/")] == ["points"]
