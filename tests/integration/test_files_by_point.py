"""Files come out of a recovery point by how it was saved, whatever the fleet file says today."""

import json
import random
import shutil

import pytest

from vmkeep import fleet as fleets
from vmkeep.cli import main
from vmkeep.operations import repositories
from vmkeep.operations.direct import run_direct
from vmkeep.operations.request import Request
from vmkeep.repository import layout
from vmkeep.testing.guests import Volume, build_disk
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
    disks: [{name: root, size: 34MiB, format: raw}, {name: data, size: 34MiB, format: raw}]
    components:
      os: {}
      filesystems: {exports: {path: /srv}, data: {disk: data}}
"""
BOTH = "[{name: root, size: 34MiB, format: raw}, {name: data, size: 34MiB, format: raw}]"
NOW = {
    "as it was": FLEET,
    "without its VM": FLEET[: FLEET.index("  db1:")] + "  other: {disks: [{name: root, size: 8MiB}]}\n",
    "without its components": FLEET.replace(
        "      filesystems: {exports: {path: /srv}, data: {disk: data}}\n", ""
    ),
    "with files for a disk and a disk for files": FLEET.replace(
        "{exports: {path: /srv}, data: {disk: data}}", "{exports: {disk: data}, data: {path: /data}}"
    ),
    "with its disks the other way round": FLEET.replace(
        BOTH, "[{name: data, size: 34MiB, format: raw}, {name: root, size: 34MiB, format: raw}]"
    ),
    "with a component that was never saved": FLEET.replace(
        "data: {disk: data}", "data: {disk: data}, etc: {path: /etc}"
    ),
}
BIG = random.Random(1).randbytes(3 * MiB)
WANTED = {
    "db1/filesystems.exports": ("/srv/orders", "orders\n"),
    "db1/os": ("/etc/hostname", "db1\n"),
    "db1/filesystems.data": ("/data/rows", "rows\n"),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder in which a VM of two disks was saved; one is mounted by its place among them."""
    folder, guest = tmp_path_factory.mktemp("shop"), tmp_path_factory.mktemp("guest")
    for path, text in {
        "root/etc/hostname": "db1\n",
        "root/etc/fstab": "/dev/vdb1 /data ext4 defaults 0 2\n",
        "root/srv/orders": "orders\n",
        "data/rows": "rows\n",
    }.items():
        (guest / path).parent.mkdir(parents=True, exist_ok=True)
        (guest / path).write_text(text)
    (guest / "root/data").mkdir()
    (guest / "root/var").mkdir()
    (guest / "root/var/big").write_bytes(BIG)
    (folder / "images/db1").mkdir(parents=True)
    for disk in ("root", "data"):
        build_disk(folder / f"images/db1/{disk}.raw", [Volume(guest / disk, size=32 * MiB)])
    (folder / "fleet.yaml").write_text(FLEET)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VMKEEP_STATE", str(tmp_path_factory.mktemp("state")))
        assert main(["init", "-f", str(folder / "fleet.yaml")]) == 0
        for operation in ("configure", "backup"):
            report = run_direct(Request(operation=operation, fleet=folder / "fleet.yaml"))
            assert report.exit_code == 0, report.outcomes
        yield folder


@pytest.fixture
def restore(shop, tmp_path):
    """Restores files into `found`, under a fleet file as it is now."""

    def run(now, *arguments):
        fleet = shop / "now.yaml"
        fleet.write_text(now)
        return main(["restore", *arguments, "-f", str(fleet), "--to", str(tmp_path / "found"), "--no-owners"])

    return run


def files(folder):
    return {f"/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("target", WANTED)
@pytest.mark.parametrize("now", NOW)
def test_a_file_comes_back_as_it_was_saved_with_a_fleet_file(restore, tmp_path, now, target):
    path, content = WANTED[target]

    assert restore(NOW[now], target, "--path", path) == 0
    assert files(tmp_path / "found") == {path}
    assert (tmp_path / f"found{path}").read_text() == content


@pytest.mark.parametrize("now", NOW)
def test_a_vm_whose_name_alone_is_said_gives_the_files_that_were_saved_as_such(restore, tmp_path, now):
    if now == "without its VM":
        assert restore(NOW[now], "db2") == 2

    assert restore(NOW[now], "db1") == 0
    assert files(tmp_path / "found") == {"/srv/orders"}


@pytest.mark.parametrize("now", ["as it was", "without its VM"])
def test_files_out_of_a_copy_say_why_the_repository_was_not_used(restore, tmp_path, capfd, now):
    declared = "{store: ./gone, key: {file: ./key}, copies: {nas: {store: ./store, key: {file: ./key}}}}"
    text = NOW[now].replace("{store: ./store, key: {file: ./key}}", declared)

    assert restore(text, "db1/os", "--path", "/data") == 0
    assert files(tmp_path / "found") == {"/data/rows"}
    told = " ".join(capfd.readouterr().err.split())
    assert "restored from copy nas, which may be behind: primary could not be used" in told


def test_files_are_listed_as_they_would_be_restored_also_of_a_vm_that_is_declared_no_more(shop, capfd):
    (shop / "now.yaml").write_text(NOW["without its VM"])
    capfd.readouterr()

    assert main(["show", "db1", "--files", "os", "-f", str(shop / "now.yaml"), "--json"]) == 0
    assert {"/data/rows", "/etc/hostname"} < {one["path"] for one in json.loads(capfd.readouterr().out)}


def test_the_points_of_a_run_are_found_of_a_vm_that_is_declared_no_more(restore, shop, tmp_path, capfd):
    capfd.readouterr()
    assert main(["points", "db1", "-f", str(shop / "fleet.yaml"), "--json"]) == 0
    run = json.loads(capfd.readouterr().out)[0]["run"]

    assert restore(NOW["without its VM"], "db1/os", "--path", "/data", "--run", run) == 0
    assert files(tmp_path / "found") == {"/data/rows"}


@pytest.mark.parametrize("target", ["db1/filesystems.nothing", "db1/databases", "dbb1/os"])
def test_what_neither_the_fleet_file_nor_a_point_knows_is_refused(restore, tmp_path, target):
    assert restore(FLEET, target) == 2
    assert not (tmp_path / "found").exists()


def test_what_is_declared_and_was_never_saved_is_not_found(restore, tmp_path):
    assert restore(NOW["with a component that was never saved"], "db1/filesystems.etc") == 1
    assert not (tmp_path / "found").exists()


@pytest.fixture
def rescue(shop, tmp_path, capfd):
    """Rescues files into `found`, without any fleet file."""

    def run(*arguments):
        capfd.readouterr()
        command = ["rescue", str(shop / "store"), "--key-file", str(shop / "key"), "restore"]
        code = main([*command, *arguments, "--to", str(tmp_path / "found"), "--no-owners"])
        run.printed, run.complaint = capfd.readouterr()
        return code

    return run


@pytest.mark.parametrize("target", WANTED)
def test_a_file_is_rescued_with_nothing_but_the_store_and_the_key(rescue, tmp_path, target):
    path, content = WANTED[target]

    assert rescue(target, "--path", path, "--json") == 0, rescue.complaint
    assert (tmp_path / f"found{path}").read_text() == content
    assert files(tmp_path / "found") == {path}
    told = json.loads(rescue.printed)
    assert (told["vm"], told["components"]) == ("db1", [target.partition("/")[2]])
    assert told["size"] == len(content)


def test_all_files_of_one_component_are_rescued_from_the_point_that_is_named(rescue, tmp_path):
    assert rescue("db1/os", "latest") == 0, rescue.complaint
    assert {"/etc/hostname", "/data/rows", "/srv/orders"} <= files(tmp_path / "found")
    assert "os of db1, recovery point" in rescue.printed


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["db1", "--path", "/srv"], 2, "say from which component: db1/filesystems.data, db1/filesystems.exp"),
        (["--path", "/srv"], 2, "say of which VM"),
        (["db1/os", "--path", "/srv", "--tar"], 2, "--tar and --overwrite"),
        (["db1", "--kernel-mounts"], 2, "--path"),
        (["db1/os", "--path", "/lost"], 1, "/lost"),
        (["db1/oss", "--path", "/srv"], 1, "has no oss; did you mean 'os'?"),
        (["db2/os", "--path", "/srv"], 1, "no recovery point of db2"),
    ],
)
def test_what_cannot_be_rescued_is_told_and_nothing_is_made(rescue, tmp_path, arguments, code, why):
    assert rescue(*arguments) == code
    assert why in " ".join(rescue.complaint.split())
    assert not (tmp_path / "found").exists()


def test_a_file_that_is_damaged_in_the_repository_is_said_to_be_and_others_come_back(shop, tmp_path, capsys):
    broken = tmp_path / "shop"
    shutil.copytree(shop, broken)
    damage_chunk_of(broken, "root", BIG[MiB : MiB + 4096])
    how = ["-f", str(broken / "fleet.yaml"), "--to", str(tmp_path / "found"), "--no-owners"]

    assert main(["restore", "db1/os", "--path", "/etc/hostname", *how]) == 0
    capsys.readouterr()
    assert main(["restore", "db1/os", "--path", "/var/big", *how]) == 4

    told = capsys.readouterr().err
    assert "disk root: a saved disk cannot be read at" in told
    assert "/var/big" in told
    assert files(tmp_path / "found") == {"/etc/hostname"}


def damage_chunk_of(folder, disk, content):
    """Damage what the repository has of the one chunk of an image in which *content* lies."""
    with repositories.open_repository(fleets.load(folder / "fleet.yaml")) as repository:
        size = repository.format.disk_chunk
        image = (folder / f"images/db1/{disk}.raw").read_bytes()
        start = image.index(content) // size * size
        found = repository.committed.current().locate(
            repository.keys.newest.chunk_id(image[start : start + size])
        )
    pack = folder / "store" / layout.pack(found.pack.name)
    body = bytearray(pack.read_bytes())
    body[found.offset + found.stored // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(body)
