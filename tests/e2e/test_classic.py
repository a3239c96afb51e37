"""The six classic commands, as typed: they edit the fleet file like a person, and then do it."""

import shutil
import threading
from pathlib import Path

import pytest

from vmkeep import fleet as fleets
from vmkeep.cli import classic, main
from vmkeep.cli import edit as editing
from vmkeep.cli.classic.machines import add_network

pytestmark = pytest.mark.e2e

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
FLEET = """\
# Our laboratory.
version: 1
fleet: lab        # all of it
repository: {store: ./repository, key: {file: "./key"}}
hypervisors:
    shelf: {driver: images, path: ./images}    # a folder
vms:
    # It has the rows.
    db1: {hypervisor: shelf, cpus: 2, disks: [{name: root, size: 8MiB, format: raw}]}
    app1:          # and who shows them
        hypervisor: shelf
        depends_on: [db1]
        disks:
            - {name: root, size: 8MiB, format: raw}
"""


@pytest.fixture
def lab(tmp_path, monkeypatch, capfd):
    """Run commands in a folder with a fleet; they return exit code, output and errors."""
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "debian.iso").write_bytes(b"an image")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("VMKEEP_FLEET", raising=False)

    def run(line):
        name, *arguments = line.split()
        capfd.readouterr()
        code = main(arguments) if name == "vmkeep" else getattr(classic, name)(arguments)
        return code, *capfd.readouterr()

    return run


def text():
    return Path("fleet.yaml").read_text()


def vm(name):
    return fleets.load("fleet.yaml").fleet.vms[name]


def test_a_vm_is_made_of_the_textbook_lines(lab):
    lines = [
        "vmcreate -n myvm -i debian.iso", "vconfig myvm -a -n VMNetwork", "vdisk myvm -a -s 10M",
        "vcpu myvm -a -c 2",
    ]  # fmt: skip

    assert [lab(line)[0] for line in lines] == [0, 0, 0, 0]

    assert (vm("myvm").iso, vm("myvm").networks, vm("myvm").cpus) == ("debian.iso", ("VMNetwork",), 2)
    assert Path("images/myvm/disk1.qcow2").exists()
    assert lab("vmkeep configure --dry-run myvm")[1].strip() == "myvm: as declared"


def test_all_that_was_written_stays_as_it_was(lab):
    lab("vmcreate -n myvm -i debian.iso")
    lab("vdisk myvm -a -s 10M")

    assert text().startswith(FLEET.rstrip("\n"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_change_of_any_example_changes_nothing_else(path, tmp_path):
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    name = list(fleets.load(path).fleet.vms)[-1]

    lines = editing.edit(copy, lambda document: editing.machine(document, name).__setitem__("cpus", 7))

    assert fleets.load(copy).fleet.vms[name].cpus == 7
    assert len([line for line in lines if line.startswith("-")]) <= 1
    assert len(lines) <= 2


def test_networks_of_the_defaults_are_kept_when_one_is_added(lab):
    Path("fleet.yaml").write_text(FLEET.replace("vms:\n", "defaults: {networks: [lan]}\nvms:\n", 1))

    assert lab("vconfig db1 -a -n backup")[0] == 0

    assert vm("db1").networks == ("lan", "backup")
    assert vm("app1").networks == ("lan",)


def test_a_disk_grows_by_its_name(lab):
    lab("vmkeep configure --direct")

    code, out, _ = lab("vdisk app1 -a -n root -s 12MiB")

    assert code == 0
    assert Path("images/app1/root.raw").stat().st_size == 12 * 1024**2
    assert "+            - {name: root, size: 12MiB, format: raw}" in out


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("vmcreate -n myvm -i missing.iso", "iso 'missing.iso' is not a file"),
        ("vmcreate -n db1", "there is a VM 'db1'"),
        ("vmcreate -n no/name", "vms"),
        ("vdisk db1 -a -s 10M -t vmfs", "storage is not supported by driver images"),
        ("vdisk db1 -a -n root -s 1MiB", "disks are never shrunk"),
        ("vdisk db1 -a -s ten", "is not a size"),
        ("vdisk db1 -a", "say how large"),
        ("vdisk nobody -a -s 1G", "there is no VM 'nobody'"),
        ("vdisk db1 -a -l", "say one of -a (add), -l (list) and -r (remove)"),
        ("vcpu db1 -a", "say how many"),
        ("vconfig db1 -r -n lan", "has no network 'lan'"),
        ("vmcreate -r db1", "there is no VM 'db1'"),
        ("vmcreate", "say -n NAME"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_was_touched(lab, line, problem):
    lab("vmkeep configure --direct")
    before = sorted(Path("images").rglob("*"))

    code, _, err = lab(line)

    assert code == 2
    assert problem in err
    assert err.startswith(f"{line.split()[0]}: ")
    assert text() == FLEET
    assert sorted(Path("images").rglob("*")) == before


def test_what_is_removed_stays_where_it_is(lab):
    lab("vmcreate -n myvm")
    lab("vdisk myvm -a -s 10M")

    assert "the disk itself stays" in lab("vdisk myvm -r -n disk1")[1]
    assert "the VM, its disks and its recovery points stay" in lab("vmcreate -r myvm")[1]

    assert Path("images/myvm/disk1.qcow2").exists()
    assert "myvm" not in fleets.load("fleet.yaml").fleet.vms


def test_lists_tell_what_there_is(lab):
    lab("vmkeep configure db1 --direct")

    rows = [line.split() for line in lab("vmcreate -l")[1].splitlines()[1:]]

    assert [row[:4] for row in rows] == [["db1", "yes", "shelf", "2"], ["app1", "no", "shelf", "1"]]
    assert "root" in lab("vdisk db1 -l")[1]
    assert lab("vcpu db1 -l")[1] == "2\n"


def test_parts_are_saved_and_restored(lab):
    Path("fleet.yaml").write_text(
        FLEET.replace("format: raw}]}", "format: raw}, {name: data, size: 8MiB, format: raw}], "
                      "components: {os: {}, filesystems: {data: {disk: data}}}}", 1)
    )  # fmt: skip
    lab("vmkeep init")
    lab("vmkeep configure --direct")
    data, root = Path("images/db1/data.raw"), Path("images/db1/root.raw")
    content = {path: path.name.encode() + bytes(8 * 1024**2 - len(path.name)) for path in (data, root)}
    for path, before in content.items():
        path.write_bytes(before)
    saved = lab("vmbackup db1 -o -f --direct")
    for path in content:
        path.write_bytes(b"damaged" + bytes(8 * 1024**2 - 7))

    restored = lab("vmrestore db1 -f --overwrite --direct")

    assert (saved[0], restored[0]) == (0, 0)
    assert data.read_bytes() == content[data]
    assert root.read_bytes().startswith(b"damaged")
    assert lab("vmrestore db1 -d --overwrite --direct")[0] == 2


def test_nothing_is_replaced_unasked(lab):
    lab("vmkeep init")
    lab("vmkeep configure --direct")
    lab("vmbackup db1 --direct")

    code, _, err = lab("vmrestore db1 --direct")

    assert code == 2
    assert "--overwrite" in err


def test_two_changes_at_once_are_both_made(lab):
    lab("vmkeep configure --direct")
    names = [f"net{number}" for number in range(4)]
    threads = [
        threading.Thread(target=lambda name=name: editing.edit(Path("fleet.yaml"), adding(name)))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(vm("db1").networks) == names


def adding(network):
    def change(document):
        editing.items(editing.machine(document, "db1"), "networks", []).append(network)

    return change


@pytest.mark.parametrize("name", ["vmcreate", "vconfig", "vdisk", "vcpu", "vmbackup", "vmrestore"])
def test_help_teaches_with_examples(lab, name):
    code, out, _ = lab(f"{name} --help")

    assert code == 0
    assert f"{name} myvm" in out or f"{name} -n myvm" in out


def test_the_file_keeps_its_rights_and_its_link(lab, tmp_path):
    real = tmp_path / "real.yaml"
    Path("fleet.yaml").rename(real)
    Path("fleet.yaml").symlink_to(real)
    real.chmod(0o640)
    lab("vmkeep configure --direct")

    add_network(Path("fleet.yaml"), "db1", "lan")

    assert Path("fleet.yaml").is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert "networks: [lan]" in real.read_text()
