"""Everything back from the store and the key alone: the fleet file, the VMs and all state are gone."""

import hashlib
import json
import shutil
import sqlite3
import subprocess
import tarfile
from contextlib import closing

import pytest

from vmkeep import fleet as fleets
from vmkeep.cli import main
from vmkeep.operations.direct import run_direct
from vmkeep.operations.request import Request
from vmkeep.testing.guests import Volume, build_disk, describe, fill_with_oddities
from vmkeep.units import MiB

pytestmark = pytest.mark.integration

FLEET = """\
version: 1
fleet: shop
repository: {store: ./store, key: {file: ./key}}
hypervisors: {shelf: {driver: images, path: ./images}}
defaults: {hypervisor: shelf}
vms:
  db1:
    cpus: 2
    disks: [{name: root, size: 34MiB, format: qcow2}]
    components:
      os: {}
      databases: {orders: {engine: sqlite, path: /srv/orders.db}}
      filesystems: {exports: {path: /srv/exports}}
  app1: {depends_on: [db1], disks: [{name: root, size: 34MiB, format: raw}]}
"""


def content(image):
    """The digest of what a guest would read from an image."""
    raw = image.with_suffix(".content")
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    try:
        return hashlib.sha256(raw.read_bytes()).hexdigest()
    finally:
        raw.unlink()


def seconds(described):
    """Files with times to the second, which is all that mke2fs copies."""
    return {path: (*facts[:3], facts[3] // 10**9, *facts[4:]) for path, facts in described.items()}


class Lost:
    """What was, and what is left of it: `store` and `key` in a folder."""

    def __init__(self, folder, tree):
        (tree / "etc").mkdir(parents=True)
        (tree / "etc" / "fstab").touch()
        fill_with_oddities(tree / "srv" / "exports")
        with closing(sqlite3.connect(tree / "srv" / "orders.db")) as database:
            database.execute("create table orders (id integer)")
            database.executemany("insert into orders values (?)", [(number,) for number in range(100)])
            database.commit()
        self.folder, self.tree = folder, tree
        (folder / "fleet.yaml").write_text(FLEET)
        images = {
            vm: folder / "images" / vm / file for vm, file in (("db1", "root.qcow2"), ("app1", "root.raw"))
        }
        for image in images.values():
            image.parent.mkdir(parents=True)
            build_disk(image, [Volume(tree, size=32 * MiB)], format=image.suffix[1:])
        assert main(["init", "-f", str(folder / "fleet.yaml")]) == 0
        for operation in ("configure", "backup"):
            report = run_direct(Request(operation=operation, fleet=folder / "fleet.yaml"))
            assert report.exit_code == 0, report.sentence
        self.content = {vm: content(image) for vm, image in images.items()}
        shutil.rmtree(folder / "images")
        (folder / "fleet.yaml").unlink()


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VMKEEP_STATE", str(tmp_path_factory.mktemp("state")))
        return Lost(tmp_path_factory.mktemp("shop"), tmp_path_factory.mktemp("guest") / "tree")


@pytest.fixture
def rescue(lost, tmp_path, monkeypatch, capfd):
    """Runs `vmkeep rescue` with the store and the key, in an empty folder."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))

    def run(*arguments, store=lost.folder / "store", key=lost.folder / "key"):
        capfd.readouterr()
        code = main(["rescue", str(store), "--key-file", str(key), *arguments])
        return code, *capfd.readouterr()

    run.folder = empty
    return run


def test_all_recovery_points_are_listed(rescue):
    code, printed, _ = rescue("--json")

    assert code == 0
    assert {one["vm"]: one["components"] for one in json.loads(printed)} == {
        "db1": ["databases.orders", "filesystems.exports", "os"],
        "app1": ["os"],
    }
    assert "db1" in rescue()[1]


def test_the_texts_of_a_recovery_point_are_printed_as_they_are(rescue):
    assert rescue("show", "db1", "--only", "fleet-file")[1] == FLEET
    assert json.loads(rescue("show", "db1", "--only", "definition")[1])["cpus"] == 2
    assert "vmkeep rescue STORE" in rescue("show", "db1", "--only", "instructions")[1]
    assert json.loads(rescue("show", "db1", "--json")[1])["fleet_file"] == FLEET


def test_every_disk_file_and_row_comes_back(rescue, lost):
    code, printed, _ = rescue("restore", "--to", "out")

    out = rescue.folder / "out"
    assert code == 0
    assert {vm: content(next((out / vm).glob("root.*"))) for vm in ("db1", "app1")} == lost.content
    assert seconds(describe(out / "db1/filesystems.exports/srv/exports")) == seconds(
        describe(lost.tree / "srv/exports")
    )
    with closing(sqlite3.connect(out / "db1/databases.orders/srv/orders.db")) as database:
        assert database.execute("select count(*) from orders").fetchone() == (100,)
    assert "Next:" in printed


def test_what_was_rescued_is_backed_up_again_with_the_fleet_file_inside(rescue, lost):
    rescue("restore", "--to", "images")
    text = rescue("show", "db1", "--only", "fleet-file")[1]
    fleet = rescue.folder / "fleet.yaml"
    fleet.write_text(
        text.replace("./store", str(lost.folder / "store")).replace("./key", str(lost.folder / "key"))
    )
    assert fleets.load(fleet).fleet.fleet == "shop"

    assert run_direct(Request(operation="configure", fleet=fleet)).exit_code == 0
    assert run_direct(Request(operation="restore", fleet=fleet, overwrite=True)).exit_code == 0


def test_one_vm_is_restored_from_the_point_that_is_named(rescue):
    (point,) = json.loads(rescue("list", "app1", "--json")[1])

    code, printed, _ = rescue("restore", "app1", point["session"], "--to", "out", "--json")

    assert code == 0
    assert [one["session"] for one in json.loads(printed)] == [point["session"]]
    assert sorted(path.name for path in (rescue.folder / "out").iterdir()) == ["app1"]
    assert sorted(path.name for path in (rescue.folder / "out/app1").iterdir()) == ["root.raw", "vm.json"]


def test_files_become_archives_when_asked_for(rescue):
    assert rescue("restore", "db1", "--to", "out", "--tar")[0] == 0

    with tarfile.open(rescue.folder / "out/db1/filesystems.exports.tar") as archive:
        assert "srv/exports/plain.txt" in archive.getnames()
    assert not (rescue.folder / "out/db1/filesystems.exports").exists()


def test_nothing_that_exists_is_overwritten_unasked(rescue):
    rescue("restore", "app1", "--to", "out")
    image = rescue.folder / "out/app1/root.raw"
    image.write_bytes(b"mine")

    assert rescue("restore", "app1", "--to", "out")[0] == 2
    assert image.read_bytes() == b"mine"
    assert rescue("restore", "app1", "--to", "out", "--overwrite")[0] == 0
    assert image.stat().st_size == 34 * MiB


def test_what_is_damaged_does_not_keep_the_rest_away(rescue, lost, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(lost.folder / "store", store)
    shutil.rmtree(store / "packs")
    code, _, complaint = rescue("restore", "--to", "out", store=store)

    assert code == 4
    assert complaint.count("app1/os") >= 1
    assert complaint.count("db1/filesystems.exports") >= 1
    assert (rescue.folder / "out/db1/vm.json").exists()


@pytest.mark.parametrize("store", ["nothing", "s3:/typo"])
def test_a_store_that_is_not_there_is_not_made(rescue, store):
    assert rescue(store=store)[0] != 0
    assert list(rescue.folder.iterdir()) == []


def test_a_wrong_key_is_told(rescue):
    assert main(["key", "new", "wrong"]) == 0

    assert rescue(key="wrong")[0] == 6


def test_a_rescue_leaves_the_store_as_it_was(rescue, lost):
    def files():
        return {
            path: path.stat().st_mtime_ns for path in (lost.folder / "store").rglob("*") if path.is_file()
        }

    before = files()

    assert rescue("restore", "--to", "out")[0] == 0

    assert files() == before
