"""The command line as an operator uses it: real disks with ext4, a real repository, without Prefect."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from vmkeep.cli import main
from vmkeep.operations import backup
from vmkeep.planning import Verb
from vmkeep.testing.guests import Volume, build_disk, describe, fill_with_oddities

pytestmark = pytest.mark.e2e

FLEET = """\
version: 1
fleet: shop
repository: {store: ./repository, key: {file: ./key}}
hypervisors: {shelf: {driver: images, path: ./images}}
defaults: {hypervisor: shelf}
vms:
  db1:
    disks: [{name: root, size: 34MiB, format: qcow2}]
    components:
      os: {}
      databases: {orders: {engine: sqlite, path: /srv/orders.db}}
      filesystems: {exports: {path: /srv/exports}}
  app1: {depends_on: [db1], disks: [{name: root, size: 34MiB, format: raw}]}
"""


class Shop:
    """A fleet in a folder, and the command line in it."""

    def __init__(self, folder, capfd):
        self.folder, self.capfd = folder, capfd
        self.out = self.err = ""

    def __call__(self, *arguments):
        """Run a command; return its exit code, and keep what it printed."""
        self.capfd.readouterr()
        code = main(arguments)
        self.out, self.err = self.capfd.readouterr()
        return code

    def json(self, *arguments):
        assert self(*arguments, "--json") == 0, self.err
        return json.loads(self.out)

    def image(self, vm):
        (path,) = (self.folder / "images" / vm).glob("root.*")
        return path

    def damage_packs(self):
        """Flip a bit in each: VMs saved at the same time may both have stored what they share."""
        packs = [path for path in (self.folder / "repository" / "packs").rglob("*") if path.is_file()]
        for pack in packs:
            data = bytearray(pack.read_bytes())
            data[len(data) // 2] ^= 1
            pack.chmod(0o600)
            pack.write_bytes(data)
        return packs


def known(folder):
    """Return all that is known of the files, but what fuse2fs cannot keep, and a socket's own times."""
    return {path: facts[:3] + facts[4:] for path, facts in describe(folder).items() if b"socket" not in path}


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """What the guests' disks begin with."""
    folder = tmp_path_factory.mktemp("guest")
    (folder / "etc").mkdir()
    (folder / "etc" / "fstab").touch()
    fill_with_oddities(folder / "srv" / "exports")
    with closing(sqlite3.connect(folder / "srv" / "orders.db")) as database:
        database.execute("create table orders (id integer)")
        database.executemany("insert into orders values (?)", [(number,) for number in range(100)])
        database.commit()
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory, tree):
    """A fleet with disks, not yet initialised."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "fleet.yaml").write_text(FLEET)
    for vm, form in (("db1", "qcow2"), ("app1", "raw")):
        (folder / "images" / vm).mkdir(parents=True)
        build_disk(
            folder / "images" / vm / f"root.{form}", [Volume(tree, size=32 * 1024 * 1024)], format=form
        )
    return folder


@pytest.fixture
def fresh(tmp_path, built, capfd, monkeypatch):
    """The fleet's own copy for a test, in the current directory."""
    folder = tmp_path / "shop"
    shutil.copytree(built, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("TZ", "UTC")
    return Shop(folder, capfd)


@pytest.fixture
def shop(fresh):
    """The fleet, with a repository."""
    assert fresh("init") == 0
    assert fresh("configure", "--direct") == 0
    return fresh


@pytest.fixture
def saved(shop):
    """The fleet, saved once."""
    assert shop("backup", "--direct") == 0, shop.err
    return shop


# The way through.


def test_init_writes_a_fleet_file_where_there_is_none(tmp_path, capfd):
    shop = Shop(tmp_path, capfd)

    assert shop("init", "-f", str(tmp_path / "new.yaml")) == 0
    assert shop("validate", "-f", str(tmp_path / "new.yaml")) == 0


def test_init_makes_the_key_and_says_to_keep_a_copy(fresh):
    assert fresh("init") == 0

    assert "KEEP A COPY" in fresh.err
    assert (fresh.folder / "key").stat().st_mode & 0o777 == 0o600


def test_a_second_init_changes_nothing_and_says_so(shop):
    key = (shop.folder / "key").read_bytes()

    assert shop.json("init")["state"] == "exists"
    assert (shop.folder / "key").read_bytes() == key


def test_init_makes_no_new_key_for_a_repository_that_exists(shop):
    (shop.folder / "key").unlink()

    assert shop("init") == 6
    assert not (shop.folder / "key").exists()


def test_configure_shows_first_what_it_would_change(fresh):
    fresh("init")

    changes = fresh.json("configure", "--dry-run")

    assert changes["db1"]
    assert not any(change["applied"] for change in changes["db1"])
    assert fresh("configure", "--direct") == 0
    assert fresh.json("configure", "--dry-run") == {"db1": [], "app1": []}


def test_a_destroyed_vm_comes_back_equal(saved):
    image = saved.image("app1")
    before = image.read_bytes()
    shutil.rmtree(image.parent)

    assert saved("restore", "app1", "--direct") == 0

    assert image.read_bytes() == before


def test_a_backup_says_what_it_read_and_stored(saved):
    report = saved.json("backup", "--direct")

    assert (report["complete"], report["exit_code"], report["stored"]) == (True, 0, 0)
    assert {step["state"] for step in report["steps"]} == {"succeeded"}
    assert "seal db1" in {step["step"] for step in report["steps"]}


def test_points_are_listed_with_their_components(saved):
    listed = {point["vm"]: point for point in saved.json("points")}

    assert listed["db1"]["components"] == ["databases.orders", "filesystems.exports", "os"]
    assert listed["db1"]["run"] == listed["app1"]["run"]
    assert saved("points", "db1") == 0
    assert listed["db1"]["session"] in saved.out
    assert listed["app1"]["session"] not in saved.out


def test_show_tells_all_about_a_point(saved):
    assert saved("show", "db1") == 0

    for word in ("databases.orders", "engine: sqlite", "disk root", '"cpus": 1', "vmkeep restore db1"):
        assert word in saved.out
    assert saved.json("show", "db1")["fleet_file"] == FLEET


def test_show_lists_the_files_of_a_component(saved):
    files = {one["path"]: one for one in saved.json("show", "db1", "--files", "filesystems.exports")}

    assert files["/srv/exports/plain.txt"]["size"] == 10
    assert files["/srv/exports/link"]["target"] == "plain.txt"
    assert saved("show", "db1", "--files", "filesystems.exports") == 0
    assert "new\\nline" in saved.out


def test_show_lists_the_files_on_a_whole_disk(saved):
    by_files = {one["path"]: one for one in saved.json("show", "db1", "--files", "filesystems.exports")}
    by_disk = {one["path"]: one for one in saved.json("show", "db1", "--files", "os")}

    assert {path: by_disk[path] for path in by_files} == by_files
    assert "/etc/fstab" in by_disk
    for component in ("os", "filesystems.exports"):
        assert saved("show", "db1", "--files", component, "--path", "/srv/exports/plain.txt") == 0
        assert len(saved.out.splitlines()) == 1


def test_files_restored_into_a_folder_are_equal(saved, tree, tmp_path):
    assert saved("restore", "db1/filesystems.exports", "--to", str(tmp_path / "found")) == 0

    assert known(tmp_path / "found" / "srv" / "exports") == known(tree / "srv" / "exports")


def test_files_come_out_of_a_whole_disk_equal(saved, tree, tmp_path):
    assert saved("restore", "db1/os", "--to", str(tmp_path / "found")) == 0, saved.err

    assert known(tmp_path / "found" / "srv" / "exports") == known(tree / "srv" / "exports")
    assert (tmp_path / "found" / "etc" / "fstab").exists()
    assert "os of db1" in saved.out


def test_a_single_file_comes_out_of_a_whole_disk(saved, tmp_path):
    found = tmp_path / "found"

    code = saved("restore", "app1", "--to", str(found), "--path", "/srv/exports/plain.txt", "--no-owners")

    assert code == 0, saved.err
    assert (found / "srv/exports/plain.txt").read_text() == "just text\n"
    assert len([path for path in found.rglob("*") if path.is_file()]) == 1


def test_what_is_on_no_disk_is_said_and_no_folder_is_made(saved, tmp_path):
    code = saved("restore", "app1/os", "--to", str(tmp_path / "found"), "--path", "/srv/lost")

    assert code == 1
    assert "/srv/lost" in saved.err
    assert not (tmp_path / "found").exists()


def test_a_whole_disk_is_exported_as_tar(saved, tmp_path):
    assert saved("restore", "app1/os", "--tar", str(tmp_path / "app1.tar")) == 0, saved.err

    with tarfile.open(tmp_path / "app1.tar") as archive:
        assert archive.extractfile("srv/exports/plain.txt").read() == b"just text\n"


def test_an_archive_is_there_completely_or_as_it_was(saved, tmp_path):
    old, fresh = tmp_path / "old.tar", tmp_path / "new.tar"
    old.write_bytes(b"the last good one")

    assert saved("restore", "app1/nothing", "--tar", str(fresh)) == 2
    assert saved("restore", "app1/os", "--tar", str(old), "--overwrite", "--point", "app1=19") == 1
    assert saved("restore", "app1/os", "--tar", str(old)) == 2
    assert saved("restore", "app1/os", "--tar", "-", "--json") == 2

    assert old.read_bytes() == b"the last good one"
    assert [path.name for path in tmp_path.glob("*.tar*")] == ["old.tar"]
    assert saved("restore", "app1/os", "--tar", str(old), "--overwrite") == 0
    with tarfile.open(old) as archive:
        assert archive.extractfile("srv/exports/plain.txt").read() == b"just text\n"


def test_a_single_file_is_restored_without_owners(saved, tmp_path):
    code = saved(
        "restore", "db1/filesystems.exports", "--to", str(tmp_path / "found"),
        "--path", "/srv/exports/plain.txt", "--no-owners",
    )  # fmt: skip

    assert code == 0, saved.err
    assert (tmp_path / "found/srv/exports/plain.txt").read_text() == "just text\n"
    assert len([path for path in (tmp_path / "found").rglob("*") if path.is_file()]) == 1


def test_a_database_is_restored_as_a_file(saved, tmp_path):
    assert saved("restore", "db1/databases", "--to", str(tmp_path)) == 0

    with closing(sqlite3.connect(tmp_path / "srv" / "orders.db")) as database:
        assert database.execute("select count(*) from orders").fetchone() == (100,)


def test_files_are_exported_as_tar(saved, tmp_path):
    assert saved("restore", "db1/filesystems.exports", "--tar", str(tmp_path / "exports.tar")) == 0

    with tarfile.open(tmp_path / "exports.tar") as archive:
        assert archive.extractfile("srv/exports/plain.txt").read() == b"just text\n"


def test_a_vm_is_restored_beside_the_original_as_it_was_in_an_earlier_run(saved):
    run = saved.json("points", "app1")[0]["run"]
    old = saved.image("app1").read_bytes()
    with saved.image("app1").open("r+b") as file:
        file.write(b"changed")
    saved("backup", "--direct")

    assert saved("restore", "app1", "--direct", "--run", run, "--as", "app1=app1-copy") == 0

    assert saved.image("app1-copy").read_bytes() == old
    assert saved.image("app1").read_bytes() != old


def test_a_restore_with_dependencies_covers_them(saved):
    report = saved.json("restore", "app1", "--with-dependencies", "--overwrite", "--direct")

    assert "health db1" in {step["step"] for step in report["steps"]}


def test_verify_reads_everything_back(saved):
    assert saved.json("verify", "--direct")["read"] > 0
    assert saved.json("verify", "--quick")["faults"] == []


@pytest.mark.parametrize("operation", ["configure", "backup", "restore", "verify"])
def test_a_plan_is_shown_without_a_repository_and_with_one(fresh, operation):
    assert fresh.json("plan", operation)["steps"]
    assert "sizes are those of the disks" in fresh.json("plan", operation)["notes"][0]
    fresh("init")
    assert fresh("plan", operation, "db1") == 0
    assert "critical path" in fresh.out


def test_a_plan_tells_what_was_new_last_time(saved):
    before = saved.json("plan", "backup")["new"]
    saved("backup", "--direct")

    assert 0 == saved.json("plan", "backup")["new"] < before


@pytest.mark.parametrize(("form", "begin"), [("svg", "<svg"), ("mermaid", "flowchart"), ("dot", "digraph")])
def test_a_graph_is_drawn_in_each_form(fresh, form, begin):
    assert fresh("graph", "--format", form) == 0
    assert fresh.out.startswith(begin)
    assert fresh("graph", "--plan", "backup", "--format", form) == 0
    assert "backup db1/os" in fresh.out


def test_a_graphs_file_says_its_form(fresh):
    assert fresh("graph", "-o", "fleet.dot") == 0
    assert (fresh.folder / "fleet.dot").read_text().startswith("digraph")


def test_the_schema_is_json(fresh):
    assert fresh("schema") == 0
    assert json.loads(fresh.out)["properties"]["vms"]


def test_doctor_finds_nothing_wrong_with_a_fleet_that_works(shop):
    checks = {check["what"]: check for check in shop.json("doctor")}
    assert "2 of 2 declared VMs are there" in checks["hypervisor shelf"]["found"]

    assert checks["repository"]["good"]
    assert checks["package tasks"]["good"]


# The exit codes.


def test_a_bad_fleet_file_ends_with_2_and_names_every_problem(fresh):
    (fresh.folder / "fleet.yaml").write_text(FLEET.replace("raw", "rwa").replace("[db1]", "[db2]"))

    assert fresh("validate") == 2
    assert "fleet.yaml:13: vms.app1.disks[0].format" in fresh.err
    assert "vms.app1.depends_on[0]" in fresh.err


def test_what_a_driver_cannot_do_is_a_warning_of_validate_and_refused_by_backup(shop):
    (shop.folder / "fleet.yaml").write_text(
        FLEET.replace("engine: sqlite, path: /srv/orders.db", "engine: redis")
    )

    assert shop("validate") == 0
    assert "not supported" in shop.err
    assert shop("backup", "--direct") == 2


def test_an_unknown_vm_ends_with_2_and_a_suggestion(shop):
    assert shop("backup", "dbb1", "--direct") == 2
    assert "did you mean 'db1'?" in shop.err
    assert shop("points", "app2") == 2
    assert "did you mean 'app1'?" in shop.err


def test_an_unknown_option_ends_with_2(shop):
    assert shop("backup", "--nonsense") == 2


@pytest.mark.parametrize(
    "options",
    [
        ["db1", "--to", "x", "--tar", "y"],
        ["db1", "--to", "x", "--as", "db1=z"],
        ["db1", "--path", "/etc"],
        ["db1", "--to", "x", "--path", "/srv"],
        ["--to", "x"],
        ["db1", "--run", "r", "--point", "db1=x"],
        ["db1", "--point", "db1"],
        ["db1"],
    ],
)
def test_a_restore_that_cannot_be_meant_ends_with_2_and_touches_nothing(saved, options):
    before = sorted(saved.folder.rglob("*"))

    assert saved("restore", *options, "--direct") == 2
    assert sorted(saved.folder.rglob("*")) == before


def test_a_share_that_is_no_percentage_ends_with_2(saved):
    for share in ("0%", "101%", "5", "many%", "nan%"):
        assert saved("verify", "--direct", "--share", share) == 2


def test_a_missing_component_ends_with_3_and_is_called_partial_everywhere(shop):
    (shop.folder / "fleet.yaml").write_text(FLEET.replace("/srv/orders.db", "/srv/lost.db"))

    assert shop("backup", "--direct") == 3
    assert "backup PARTIAL" in shop.out
    assert "databases.orders" in shop.out
    assert shop("points", "db1") == 0
    assert "PARTIAL, lacks databases.orders" in shop.out
    assert shop("show", "db1") == 0
    assert "lost.db" in shop.out


def test_nothing_saved_at_all_ends_with_1(shop):
    for vm in ("db1", "app1"):
        shop.image(vm).unlink()

    assert shop("backup", "--direct") == 1
    assert "backup FAILED" in shop.out


def test_a_damaged_pack_ends_with_4_and_its_place_is_named(saved):
    saved.damage_packs()

    assert saved("verify", "--direct") == 4
    assert "stored data is damaged" in saved.out
    for vm in ("db1", "app1"):  # what the present disk holds would not be read from the packs
        saved.image(vm).unlink()
    assert saved("restore", "--direct", "--overwrite") == 4


def test_a_missing_pack_is_found_by_the_quick_check(saved):
    saved.damage_packs()[0].unlink()

    assert saved("verify", "--quick") == 4
    assert "is missing" in saved.err


def test_a_damaged_point_is_listed_as_such_and_ends_with_4(saved):
    point = next((saved.folder / "repository" / "points" / "app1").iterdir())
    point.write_bytes(point.read_bytes()[:-1] + b"?")

    assert saved("points") == 4
    assert "DAMAGED" in saved.out
    assert "databases.orders" in saved.out


def test_a_store_that_is_away_ends_with_5(fresh, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    (fresh.folder / "key").touch(mode=0o600)
    (fresh.folder / "key").write_text("a passphrase")
    (fresh.folder / "fleet.yaml").write_text(
        FLEET.replace(
            "store: ./repository",
            "store: s3://nowhere/prod, s3: {endpoint_url: 'http://127.0.0.1:1', region: us-east-1}",
        )
    )

    assert fresh("points") == 5


@pytest.mark.parametrize("command", ["backup", "deploy"])
def test_a_prefect_server_that_is_away_ends_with_5(shop, monkeypatch, command):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")

    assert shop(command) == 5
    assert "--direct" in shop.err


def test_a_wrong_key_ends_with_6(saved):
    (saved.folder / "key").unlink()
    (saved.folder / "key").touch(mode=0o600)
    (saved.folder / "key").write_text("another passphrase")

    assert saved("points") == 6
    assert "wrong key" in saved.err
    assert saved("doctor") == 1


def test_a_repository_that_was_not_made_yet_ends_with_1_and_says_how(fresh):
    (fresh.folder / "key").touch(mode=0o600)
    (fresh.folder / "key").write_text("a passphrase")

    assert fresh("backup", "--direct") == 1
    assert "vmkeep init" in fresh.err


# Interruptions.


def test_an_interrupted_backup_ends_with_130_and_continues_later(shop, monkeypatch):
    real = backup.save

    def interrupted(run, step, progress):
        if step.vms == ("db1",):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, step, progress)

    with monkeypatch.context() as patched:
        patched.setitem(_bodies(), Verb.BACKUP, interrupted)
        assert shop("backup", "--direct") == 130
    run = shop.err.rpartition("--resume ")[2].split()[0]

    assert "snapshots are released" in shop.err
    assert shop("backup", "--direct", "--resume", run) == 0
    assert [point["complete"] for point in shop.json("points", "db1")][-1]


def test_ctrl_c_in_a_process_of_its_own_ends_with_130_and_leaves_nothing_behind(shop):
    before = set(Path(tempfile.gettempdir()).glob("vmkeep-*"))
    program = "import sys; from vmkeep.cli import main; sys.exit(main())"
    with (
        (shop.folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", program, "backup", "--direct"], stderr=log, stdout=log
        ) as one,
    ):
        while "run 2" not in (shop.folder / "log").read_text():
            time.sleep(0.01)
        one.send_signal(signal.SIGINT)

        assert one.wait(60) in {0, 130}  # it may have been quicker

    assert set(Path(tempfile.gettempdir()).glob(f"vmkeep-{one.pid}-*")) <= before


def _bodies():
    from vmkeep.operations import steps  # noqa: PLC0415  (private, and only for this)

    return steps._BACKUP


def test_debugging_shows_where_an_error_came_from(fresh, monkeypatch):
    monkeypatch.setenv("VMKEEP_DEBUG", "1")

    assert fresh("points") == 6
    assert "Traceback" in fresh.err
