"""`vmkeep prune`: the fleet's retention, on a real repository; and collecting in a real S3 service."""

import contextlib
import json
import random
from datetime import UTC, datetime, timedelta

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
    how = [] if "--dry-run" in options else ["--direct"]
    assert main(["prune", "-f", str(site.path), *how, *options]) == 0
    return capfd.readouterr()


def step(report, name):
    (found,) = [one for one in report["steps"] if one["step"] == name]
    return found


def test_what_is_not_kept_is_forgotten_and_its_space_is_free(saved, capfd):
    before, digest = saved.points("db1"), saved.digest("db1", "data")

    told = json.loads(prune(saved, capfd, "--json").out)

    assert saved.points("db1") == before[1:]
    assert step(told, "prune db1")["details"] == [
        f"{before[0].session} forgotten",
        f"{before[1].session} kept: last",
        f"{before[2].session} kept: last, newest complete point",
    ]
    assert step(told, "prune packs")["freed"] > 2 * MiB  # the data that only the first point had
    saved.write("db1", "data", seed="destroyed")
    assert saved.run("restore", overwrite=True).exit_code == 0
    assert saved.digest("db1", "data") == digest
    assert saved.run("verify").exit_code == 0


def test_a_dry_run_says_the_same_and_changes_nothing(saved, capfd):
    before = sorted(str(path) for path in saved.folder.rglob("*"))

    expected = json.loads(prune(saved, capfd, "--dry-run", "--json").out)

    assert sorted(str(path) for path in saved.folder.rglob("*")) == before
    freed = step(json.loads(prune(saved, capfd, "--json").out), "prune packs")
    assert (expected["freed"], expected["rewritten"]) == (freed["freed"], freed["stored"])
    assert {point.session for vm in ("db1", "app1") for point in saved.points(vm)} == {
        one["session"] for one in expected["points"] if one["kept"]
    }


def test_people_see_what_is_kept_and_why(saved, capfd):
    told = prune(saved, capfd).out

    assert "forgotten" in told
    assert "kept: last, newest complete point" in told
    assert "prune db1: 2 recovery point(s) kept, 1 forgotten" in told
    assert "prune packs: freed " in told
    assert "prune complete" in told


def test_people_see_before_what_would_be_kept_and_why(saved, capfd):
    told = prune(saved, capfd, "--dry-run").out

    assert "last, newest complete point" in told
    assert "4 recovery point(s) would be kept, 2 would be forgotten; would free " in told


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
    # The other component, saved at the same time, may end a pack anywhere, and so leave 3 MiB in packs
    # of which half is needed.
    assert expected["freed"] - expected["rewritten"] > 3 * MiB
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

    assert json.loads(prune(site, capfd, "--dry-run", "--json").out)["repacked"] == 0
    assert "anew" not in prune(site, capfd).out


def test_without_retention_all_is_kept(saved, capfd):
    saved.path.write_text(FLEET)

    told = json.loads(prune(saved, capfd, "--dry-run", "--json").out)
    prune(saved, capfd)

    assert all(one["kept"] for one in told["points"])
    assert len(saved.points("db1")) == 3


def test_the_points_of_another_fleet_are_left_alone(saved, capfd):
    saved.path.write_text(saved.path.read_text().replace("fleet: site", "fleet: other"))

    assert json.loads(prune(saved, capfd, "--dry-run", "--json").out)["points"] == []
    prune(saved, capfd)

    assert len(saved.points("db1")) == 3


def test_who_is_waited_for_is_named(saved, capfd, tmp_path):
    with repositories.open_repository(saved.file) as repository:
        session = repository.begin(vm="db1", run="slow", spool=tmp_path / "spool")

        told = prune(saved, capfd).out
        session.close()

    assert "freed 0 B" in told
    assert f"session {session.id}" in told
    assert "freed 0 B" not in prune(saved, capfd, "--dead-after", "0s").out


def test_a_duration_that_is_none_ends_with_2(site, capfd):
    assert main(["prune", "-f", str(site.path), "--dead-after", "soon"]) == 2
    assert "--dead-after" in capfd.readouterr().err


def test_validate_says_that_nothing_is_pruned_by_itself_without_a_schedule(saved, capfd):
    text = saved.path.read_text()

    assert main(["validate", "-f", str(saved.path)]) == 0
    assert "'vmkeep prune' removes" in capfd.readouterr().err

    saved.path.write_text(text.replace("schedules: {", 'schedules: {prune: {cron: "0 8 * * *"}, '))
    assert main(["validate", "-f", str(saved.path)]) == 0
    assert "prune" not in capfd.readouterr().err


def test_a_vm_that_is_not_declared_any_more_is_pruned_like_others(saved, capfd):
    text = saved.path.read_text()
    a, b = text.index("  app1:"), text.index("schedules:")
    saved.path.write_text(text[:a] + text[b:])

    prune(saved, capfd)

    assert len(saved.points("app1")) == 2


def test_a_damaged_point_keeps_the_other_vms_from_nothing_and_the_packs_from_everything(saved, capfd):
    damaged = saved.points("db1")[0]
    path = saved.folder / "repository" / "points" / "db1" / damaged.session
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    packs = sorted((saved.folder / "repository" / "packs").rglob("*"))

    assert main(["prune", "-f", str(saved.path), "--direct"]) == 4

    assert len(saved.points("app1")) == 2
    assert sorted((saved.folder / "repository" / "packs").rglob("*")) == packs
    assert damaged.session in capfd.readouterr().out


def test_what_is_held_stays_and_everybody_sees_why(saved, capfd):
    oldest = saved.points("db1")[0].session
    how = ["db1", oldest, "--name", "case-7", "-f", str(saved.path)]
    assert main(["hold", *how, "--reason", "asked for by the auditors"]) == 0

    told = prune(saved, capfd).out
    assert f"{oldest} kept: held as 'case-7'" in told
    assert main(["points", "db1", "-f", str(saved.path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[0]["held"] == ["case-7"]
    assert main(["forget", "db1", oldest, "--reason", "x", "-f", str(saved.path)]) == 1
    assert "is held as 'case-7': asked for by the auditors" in capfd.readouterr().err

    assert main(["unhold", *how]) == 0
    prune(saved, capfd)
    assert oldest not in [point.session for point in saved.points("db1")]


class Later(datetime):
    """The time of two hours later."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(hours=2)


def test_a_hold_that_is_over_is_over(saved, capfd, monkeypatch):
    oldest = saved.points("db1")[0].session
    how = ["hold", "db1", oldest, "--name", "audit", "--reason", "annual report", "-f", str(saved.path)]
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    assert main([*how, "--until", "2020-01-01"]) == 2
    assert main([*how, "--until", f"{soon:%Y-%m-%dT%H:%M:%S%z}"]) == 0

    prune(saved, capfd)
    assert oldest in [point.session for point in saved.points("db1")]
    for module in ("vmkeep.operations.holds", "vmkeep.repository.repository"):
        monkeypatch.setattr(f"{module}.datetime", Later)
    prune(saved, capfd)

    assert oldest not in [point.session for point in saved.points("db1")]


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
