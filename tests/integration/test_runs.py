"""Whole runs on real images with a real repository: what is promised when things go right, and wrong."""

import signal
import subprocess
import sys
import threading
from datetime import datetime

import pytest

from vmkeep.cli import main
from vmkeep.errors import ConflictError, InputError, IntegrityError, NotFoundError, SourceChangedError
from vmkeep.operations import backup, direct, holds, lifecycle, repositories, steps
from vmkeep.operations.prepare import prepare
from vmkeep.operations.run import Run, dead_runs
from vmkeep.operations.state import state_folder
from vmkeep.planning import State, Verb
from vmkeep.testing.faults import Fault, flip
from vmkeep.testing.guests import Volume, build_disk
from vmkeep.testing.site import FLEET, Site, faulty
from vmkeep.units import MiB

pytestmark = pytest.mark.integration


def ran(report):
    return set(report.seconds)


def test_what_was_saved_is_restored_byte_for_byte(site):
    before = {
        (vm, disk): site.digest(vm, disk) for vm, disk in [("db1", "root"), ("db1", "data"), ("app1", "root")]
    }
    assert site.run("backup").exit_code == 0
    for vm in ("db1", "app1"):
        for image in site.image(vm).parent.iterdir():
            image.unlink()

    assert site.run("restore", overwrite=True).exit_code == 0

    assert {(vm, disk): site.digest(vm, disk) for vm, disk in before} == before


def test_files_that_come_with_the_disks_are_not_written_over_them_again(tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    site = with_files(tmp_path / "site")
    site.run("backup")
    before = site.digest("db1")

    report = site.run("restore", overwrite=True)

    assert [step for step in ran(report) if step.startswith("restore ")] == ["restore db1/os"]
    assert "with its disks come filesystems.exports" in report.steps["configure db1"].text
    assert site.digest("db1") == before
    assert "restore db1/filesystems.exports" in ran(
        site.run("restore", targets=["db1/filesystems"], overwrite=True)
    )


def with_files(folder):
    tree = folder / "tree"
    (tree / "srv").mkdir(parents=True)
    (tree / "srv" / "hello").write_text("hello")
    (tree / "etc").mkdir()
    (tree / "etc" / "fstab").write_text("")
    site = Site(folder, text=FILES)
    site.image("db1").unlink()
    build_disk(site.image("db1"), [Volume(tree, size=32 * MiB)])
    return site


FILES = """\
version: 1
fleet: site
repository: {store: ./repository, key: {file: ./key}}
hypervisors: {shelf: {driver: images, path: ./images}}
defaults: {hypervisor: shelf}
vms:
  db1:
    disks: [{name: root, size: 34MiB, format: raw}]
    components: {os: {}, filesystems: {exports: {path: /srv}}}
"""


def test_a_second_backup_stores_only_what_changed(site):
    first = site.run("backup").steps["seal db1"].stored
    site.write("db1", "data", seed="second")

    report = site.run("backup")

    assert report.steps["backup db1/os"].stored == 0
    assert 0 < report.steps["backup db1/filesystems.data"].stored <= first


def test_a_backup_of_one_component_does_not_make_the_next_full_one_read_the_others_again(site):
    site.run("backup")
    site.run("backup", targets=["db1/filesystems.data"])

    assert site.run("backup").steps["backup db1/os"].read == 0


def test_an_older_state_is_restored_by_its_time(site):
    site.run("backup")
    old, taken = site.digest("app1"), site.points("app1")[-1].taken
    site.write("app1", seed="later")
    site.run("backup")

    site.run("restore", targets=["app1"], at=taken, overwrite=True)

    assert site.digest("app1") == old


def test_in_place_only_what_differs_is_fetched(site):
    site.run("backup")
    old = site.digest("app1")
    with site.image("app1").open("r+b") as image:
        image.write(b"changed")

    report = site.run("restore", targets=["app1"], overwrite=True)

    assert report.exit_code == 0
    assert site.digest("app1") == old
    assert "of which its disks held" in str(report)


def test_a_restore_under_another_name_leaves_the_original_alone(site):
    site.run("backup")
    site.write("app1", seed="later")
    now = site.digest("app1")

    report = site.run("restore", targets=["app1"], rename={"app1": "app1-copy"})

    assert report.exit_code == 0
    assert site.digest("app1") == now != site.digest("app1-copy")


def test_nothing_that_exists_is_overwritten_unasked(site):
    site.run("backup")
    site.write("db1", seed="later")
    now = site.digest("db1")

    with pytest.raises(InputError, match="--overwrite"):
        site.run("restore", targets=["db1"])

    assert site.digest("db1") == now


def test_dependents_are_restored_only_after_the_health_of_what_they_need(site):
    site.run("backup")

    order = [*site.run("restore", overwrite=True).seconds]

    assert order.index("health db1") < order.index("restore app1/os")


def test_a_vm_that_fails_its_gate_blocks_only_its_dependents(site, monkeypatch):
    site.run("backup")
    monkeypatch.setattr(
        "vmkeep.operations.restore.check_images",
        lambda _hypervisor, name, _vm: (
            (_ for _ in ()).throw(SourceChangedError("sick")) if name == "db1" else ()
        ),
    )

    report = site.run("restore", overwrite=True)

    assert report.outcomes["health db1"].state is State.FAILED
    assert report.outcomes["restore app1/os"].state is State.SKIPPED
    assert report.outcomes["release app1"].state is State.SUCCEEDED


def test_a_missing_disk_costs_only_its_own_vm(site):
    site.image("app1").unlink()

    report = site.run("backup")

    assert report.exit_code == 3
    assert "app1" in report.outcomes["seal app1"].reason
    assert [point.complete for point in site.points("db1")] == [True]
    assert site.points("app1") == []


def fail_data(monkeypatch):
    real = backup.save

    def save(run, step, progress):
        if step.component == "filesystems.data":
            raise SourceChangedError("disk data changed while it was read")
        return real(run, step, progress)

    monkeypatch.setitem(steps._BACKUP, Verb.BACKUP, save)


def test_a_point_without_a_component_is_partial_and_says_why(site, monkeypatch):
    fail_data(monkeypatch)

    report = site.run("backup")

    (point,) = site.points("db1")
    assert report.exit_code == 3
    assert "PARTIAL" in report.outcomes["seal db1"].reason
    assert point.missing == {"filesystems.data": "disk data changed while it was read"}


def test_a_partial_point_is_not_restored_as_if_it_were_whole(site, monkeypatch):
    fail_data(monkeypatch)
    site.run("backup")

    with pytest.raises(NotFoundError, match="no recovery point that holds all"):
        site.run("restore", targets=["db1"], overwrite=True)

    assert site.run("restore", targets=["db1/os"], overwrite=True).exit_code == 0


def test_an_image_that_changes_behind_the_snapshot_makes_no_point(site, monkeypatch):
    real = backup.snapshot

    def then_write(run, step, progress):
        report = real(run, step, progress)
        if "app1" in step.vms:
            site.write("app1", seed="behind the snapshot")
        return report

    monkeypatch.setitem(steps._BACKUP, Verb.SNAPSHOT, then_write)

    report = site.run("backup")

    assert isinstance(report.errors["backup app1/os"], SourceChangedError)
    assert site.points("app1") == []
    assert len(site.points("db1")) == 1


def test_a_store_that_comes_back_is_waited_for(site, monkeypatch):
    seen = []

    def twice(request):
        if request.key.startswith("packs/"):
            seen.append(request)
            return Fault.AWAY if len(seen) <= 2 else None
        return None

    monkeypatch.setattr(repositories, "store_of", faulty(twice))

    assert site.run("backup").exit_code == 0


def test_a_failed_upload_is_continued_without_reading_the_vm_again(site, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(
            repositories,
            "store_of",
            faulty(
                lambda request: (
                    Fault.AWAY
                    if request.key.startswith(("packs/", "index/", "points/")) and request.verb == "put"
                    else None
                )
            ),
        )
        report = site.run("backup", targets=["app1"])
    assert report.exit_code == 5
    assert site.points("app1") == []

    again = site.run("backup", resume=report.run)

    assert again.exit_code == 0
    assert "backup app1/os" not in ran(again)
    assert [point.complete for point in site.points("app1")] == [True]


def test_a_partial_run_that_is_continued_ends_with_a_complete_point(site, monkeypatch):
    with monkeypatch.context() as patched:
        fail_data(patched)
        report = site.run("backup")

    again = site.run("backup", resume=report.run)

    assert again.exit_code == 0
    assert not {"backup app1/os", "seal app1"} & ran(again)
    assert [point.complete for point in site.points("db1")] == [False, True]


def test_an_interrupted_run_still_seals_what_it_has_and_releases(site, monkeypatch):
    released = []
    real = backup.release
    table = steps._BACKUP
    monkeypatch.setitem(
        table, Verb.RELEASE, lambda run, step, p: (released.append(step.id), real(run, step, p))[1]
    )

    class Interrupts:
        def begun(self, run, finished): ...
        def started(self, step): ...
        def advanced(self, step_id, size): ...
        def interrupted(self): ...
        def ended(self, step, _outcome, _report):
            if step.id == "backup app1/os":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        direct.run_direct(site.request("backup"), observer=Interrupts())

    assert {"release app1"} <= set(released)
    for vm in ("db1", "app1"):
        assert all(point.complete or point.missing for point in site.points(vm))


def test_a_snapshot_that_is_being_noted_does_not_disturb_other_groups(site, monkeypatch):
    real = backup.snapshot

    def noting(run, step, progress):
        report = real(run, step, progress)
        (run.folder / "snapshots" / ".another.new").touch()
        return report

    monkeypatch.setitem(steps._BACKUP, Verb.SNAPSHOT, noting)

    assert site.run("backup").exit_code == 0


def test_a_signal_never_loses_a_step_that_has_just_ended(site, monkeypatch):
    real = Run.remember

    def at_the_worst_moment(run, step_id, outcome):
        real(run, step_id, outcome)
        if step_id == "backup app1/os":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "remember", at_the_worst_moment)

    # Where the tests run in the background of a shell, they were started with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            site.run("backup")
    finally:
        signal.signal(signal.SIGINT, before)

    (run,) = (state_folder("site") / "runs").iterdir()
    assert '"release app1", "state": "succeeded"' in (run / "outcomes").read_text()


def test_two_backups_of_one_vm_at_once_both_make_a_point(site):
    reports = []
    threads = [
        threading.Thread(target=lambda: reports.append(site.run("backup", targets=["db1"]))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [report.exit_code for report in reports] == [0, 0]
    assert [point.complete for point in site.points("db1")] == [True, True]


KILLED_AT = """
import os, sys
from vmkeep.operations.direct import run_direct
from vmkeep.operations.engine import Silent
from vmkeep.operations.request import Request

class Told(Silent):
    def started(self, step):
        if step.id == sys.argv[2]:
            os.kill(os.getpid(), 9)

run_direct(Request(operation="backup", fleet=sys.argv[1]), observer=Told())
"""


@pytest.mark.parametrize(
    "step", ["snapshot db1", "backup db1/os", "upload db1/os", "release db1", "seal db1", "verify db1"]
)
def test_after_sigkill_the_last_point_restores_and_the_next_backup_is_right(site, step):
    site.run("backup")
    good = site.digest("db1")
    site.write("db1", seed="later")
    killed = subprocess.run([sys.executable, "-c", KILLED_AT, str(site.path), step], check=False)
    assert killed.returncode == -signal.SIGKILL
    later = site.digest("db1")

    oldest = site.points("db1")[0]
    assert site.run("restore", targets=["db1"], points={"db1": oldest.session}, overwrite=True).exit_code == 0
    assert site.digest("db1") == good
    site.write("db1", seed="later")
    assert site.run("backup").exit_code == 0
    assert site.run("restore", targets=["db1"], overwrite=True).exit_code == 0
    assert site.digest("db1") == later


def test_a_run_leaves_no_state_behind_when_it_succeeded(site):
    site.run("backup")

    assert list((state_folder("site") / "runs").iterdir()) == []


def test_what_is_declared_and_not_supported_refuses_the_run_before_anything_is_touched(site):
    site.path.write_text(FLEET.replace("app1: {", "app1: {guest: {agent: true}, "))

    with pytest.raises(InputError, match=r"guest.*not supported by driver images"):
        site.run("backup")

    assert site.points("db1") == []


def test_the_record_of_a_run_is_in_the_repository(site):
    report = site.run("backup")

    with repositories.open_repository(site.file) as repository:
        record = repository.runs()[report.run]
    assert record["complete"]
    assert set(record["taken"]) == {"db1", "app1"}


def test_a_run_of_another_operation_is_not_continued(site):
    site.image("app1").unlink()
    report = site.run("backup")

    with pytest.raises(Exception, match="is a backup, not a restore"):
        lifecycle.resume(site.request("restore"), report.run)


def test_all_that_is_stored_is_verified_and_damage_names_every_point(site):
    site.run("backup")
    site.write("db1", "data", seed="second")
    site.run("backup")
    sound = site.run("verify", packs=True)
    old, _ = site.points("db1")
    with repositories.open_repository(site.file) as repository:
        disk = old.components["filesystems.data"].disks["data"]
        (_, chunk), *_ = repository.trees.disk_chunks(disk)
        place = repository.trees.chunks.locate(chunk)
    pack = site.folder / "repository" / "packs" / place.pack.name.hex()[:2] / place.pack.name.hex()
    pack.chmod(0o600)
    pack.write_bytes(flip(pack.read_bytes(), place.offset + 100))

    damaged = site.run("verify", packs=True)

    assert sound.exit_code == 0
    assert damaged.exit_code == 4
    assert f"db1/filesystems.data of {old.session}: disk data" in str(damaged.errors["verify packs"])


def test_state_that_cannot_be_kept_says_where_and_what_to_do(site, monkeypatch, tmp_path, capfd):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "file"))

    assert main(["backup", "--direct", "-f", str(site.path)]) == 6

    assert "VMKEEP_STATE names another place" in capfd.readouterr().err
    assert site.points("db1") == []


@pytest.mark.parametrize("name", ["../evil", "/evil", "-dash", "has space", ".", "x" * 64])
def test_a_vm_is_restored_under_no_name_that_the_fleet_file_could_not_have(site, name):
    site.run("backup", targets=["db1"])
    before = sorted(path.relative_to(site.folder) for path in site.folder.rglob("*"))

    with pytest.raises(InputError, match="names are letters, digits"):
        prepare(site.file, site.request("restore", targets=["db1"], rename={"db1": name}, overwrite=True))

    assert sorted(path.relative_to(site.folder) for path in site.folder.rglob("*")) == before


@pytest.mark.parametrize("rename", [{"db1": "both", "app1": "both"}, {"db1": "app1"}])
def test_two_vms_are_never_restored_over_each_other(site, rename):
    site.run("backup")

    with pytest.raises(InputError, match="db1 and app1 would both be restored as"):
        prepare(site.file, site.request("restore", rename=rename, overwrite=True))


def test_a_damaged_point_costs_nothing_but_itself(site):
    for seed in ("first", "second", "third"):
        site.write("db1", seed=seed)
        site.run("backup")
    old, spoilt, new = site.points("db1")
    site.spoil_point("db1", spoilt.session)

    saved = site.run("backup")
    restored = site.run("restore", targets=["db1"], overwrite=True)

    assert (saved.exit_code, restored.exit_code) == (0, 0)
    assert [step.new for name, step in saved.steps.items() if name.startswith("backup db1")] == [0, 0]
    blocked = site.run("prune")
    assert blocked.exit_code == 4
    told = f"'vmkeep forget db1 {spoilt.session} --reason damaged' gives it up"
    assert told in str(blocked.errors["prune packs"])
    with repositories.open_repository(site.file) as repository:
        assert holds.forget(repository, "db1", spoilt.session, "damaged").session == spoilt.session
    assert site.run("prune").exit_code == 0
    assert [point.session for point in site.points("db1")][:2] == [old.session, new.session]


def test_the_newest_point_that_is_damaged_is_never_passed_over_unasked(site):
    site.run("backup")
    site.write("db1", seed="second")
    site.run("backup")
    old, spoilt = site.points("db1")
    site.spoil_point("db1", spoilt.session)

    with pytest.raises(IntegrityError, match=f"say --point db1={old.session}"):
        prepare(site.file, site.request("restore", targets=["db1"], overwrite=True))

    assert site.run("backup").exit_code == 0
    at = datetime.fromisoformat(old.sealed)
    _, points = prepare(site.file, site.request("restore", targets=["db1"], overwrite=True, at=at))
    assert points == {"db1": old.session}


def test_a_held_point_is_not_forgotten_because_it_is_damaged(site):
    site.run("backup")
    (point,) = site.points("app1")
    with repositories.open_repository(site.file) as repository:
        repository.hold(point, name="case 7", reason="auditors")
    site.spoil_point("app1", point.session)

    with (
        repositories.open_repository(site.file) as repository,
        pytest.raises(ConflictError, match="is held as 'case 7'"),
    ):
        holds.forget(repository, "app1", point.session, "damaged")


def test_a_run_that_begins_is_never_taken_for_dead(site):
    """While others look all the time who died, as each run does when it begins."""
    over = threading.Event()
    found = []

    def look():
        while not over.is_set():
            found.extend(path.name for path in dead_runs("site"))

    watchers = [threading.Thread(target=look) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    try:
        for number in range(40):
            plan, points = prepare(site.file, site.request("backup"))
            Run.begin(f"20260101T000000Z-{number:08x}", site.request("backup"), plan, points).forget()
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()
    assert found == []


@pytest.mark.parametrize("text", ["{", '{"request": {"operation": "juggle"}}', "[]"])
def test_a_run_whose_state_cannot_be_read_is_told_and_keeps_no_other_away(site, text):
    lost = state_folder("site") / "runs" / "20261124T010000Z-12345678"
    lost.mkdir(parents=True)
    (lost / "run.json").write_text(text)
    (lost / "lock").touch()

    report = site.run("backup")

    assert report.exit_code == 0
    assert f"run {lost.name} cannot be read" in report.trouble
    with pytest.raises(IntegrityError, match=f"delete {lost}"):
        site.run("backup", resume=lost.name)
