"""Files of powered-off VMs: every oddity comes back, wherever it is restored to."""

# ruff: noqa: PTH211, PTH208  (os.symlink has the order of ln -s; names are what is compared)

import dataclasses
import io
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from vmkeep.components import guest
from vmkeep.components.export import export_tar
from vmkeep.components.guest import GuestFiles
from vmkeep.disks import scratch
from vmkeep.errors import AccessError, NotFoundError, SourceChangedError, SourceError, UnsupportedError
from vmkeep.fleet.model import VM
from vmkeep.testing import shelf as shelves
from vmkeep.testing.guests import Volume, describe, fill_with_oddities, write_into
from vmkeep.units import MiB

pytestmark = pytest.mark.integration

COMPONENTS = {
    "os": {},
    "filesystems": {"odd": {"path": "/srv/odd"}, "data": {"path": "/data"}, "linked": {"path": "/opt/erp"}},
    "applications": {
        "erp": {"paths": ["/opt/erp", "/etc/erp"], "units": ["erp.service"], "exclude": ["*.tmp"]}
    },
}


def declare(*names, **components):
    disks = [{"name": name, "size": "66MiB"} for name in names or ("root",)]
    components = components or COMPONENTS
    return VM.model_validate({"hypervisor": "shelf", "disks": disks, "components": components})


class Shelf(shelves.Shelf):
    """One whose VMs are declared alike."""

    def save(self, name, component, vm=None):
        return super().save(name, component, vm or declare())

    def restore(self, name, saved, vm=None, **how):
        super().restore(name, saved, vm or declare(), **how)

    def describe(self, name, path, vm=None):
        return super().describe(name, path, vm or declare())


@pytest.fixture
def shelf(tmp_path):
    shelf = Shelf(tmp_path)
    yield shelf
    temporary = Path(tempfile.gettempdir())
    mounts = scratch.mounts_below(temporary)
    assert not [m for m in mounts if f"vmkeep-{os.getpid()}-" in str(m)]
    assert not list(temporary.glob(f"vmkeep-{os.getpid()}-*"))
    assert not list(shelf.scratch.iterdir())


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/os-release").write_text("ID=debian\n")
    return tree


@pytest.fixture
def odd(shelf, tree):
    """A VM with every oddity below /srv/odd."""
    fill_with_oddities(tree / "srv/odd")
    shelf.add("db1", tree)
    shelf.hypervisor.configure("db1", declare(), apply=True)
    with guest.writable(shelf.hypervisor, "db1") as files:
        # What builds the file system keeps whole seconds only.
        os.utime(files.root / "srv/odd/plain.txt", ns=(0, 1_234_567_890_123_456_789))
        os.symlink("y" * 3000, files.root / "srv/odd/very-long-link")
    return shelf


@pytest.fixture
def other(odd, tmp_path):
    """Another VM, which has nothing of it."""
    (tmp_path / "bare/etc").mkdir(parents=True)
    (tmp_path / "bare/etc/os-release").write_text("ID=debian\n")
    odd.add("db2", tmp_path / "bare", image_format="qcow2")
    return odd


def test_files_come_back_into_the_same_vm(odd):
    want = odd.describe("db1", "srv/odd")
    saved = odd.save("db1", "filesystems.odd")
    with guest.writable(odd.hypervisor, "db1") as files:
        shutil.rmtree(files.root / "srv/odd")

    odd.restore("db1", saved)
    assert odd.describe("db1", "srv/odd") == want


def test_files_come_back_over_what_changed(odd):
    want = odd.describe("db1", "srv/odd")
    saved = odd.save("db1", "filesystems.odd")
    with guest.writable(odd.hypervisor, "db1") as files:
        (files.root / "srv/odd/plain.txt").write_text("changed")
        (files.root / "srv/odd/tool").unlink()

    odd.restore("db1", saved)
    assert odd.describe("db1", "srv/odd") == want


def test_files_come_back_into_a_new_vm(other):
    saved = other.save("db1", "filesystems.odd")

    other.restore("db2", saved)
    assert other.describe("db2", "srv/odd") == other.describe("db1", "srv/odd")


def test_files_come_back_into_a_folder(odd, tmp_path):
    saved = odd.save("db1", "filesystems.odd")

    odd.restore("db1", saved, folder=tmp_path / "out")
    assert describe(tmp_path / "out/srv/odd") == odd.describe("db1", "srv/odd")


def test_sparse_files_stay_sparse(odd, tmp_path):
    saved = odd.save("db1", "filesystems.odd")

    odd.restore("db1", saved, folder=tmp_path / "out")
    assert (tmp_path / "out/srv/odd/sparse").stat().st_blocks * 512 < MiB
    assert int(saved.facts["bytes"]) < 6 * MiB


def test_one_file_is_restored_alone(odd, tmp_path):
    saved = odd.save("db1", "filesystems.odd")

    odd.restore("db1", saved, folder=tmp_path / "out", paths=("/srv/odd/random",))
    assert os.listdir(tmp_path / "out/srv/odd") == ["random"]
    assert describe(tmp_path / "out/srv/odd")[b"/random"] == odd.describe("db1", "srv/odd")[b"/random"]


def test_a_second_name_of_a_file_is_restored_alone(odd, tmp_path):
    saved = odd.save("db1", "filesystems.odd")

    odd.restore("db1", saved, folder=tmp_path / "out", paths=("/srv/odd/plain.txt",))
    assert (tmp_path / "out/srv/odd/plain.txt").read_text() == "just text\n"


def test_a_path_that_was_not_saved_is_named(odd, tmp_path):
    saved = odd.save("db1", "filesystems.odd")

    with pytest.raises(NotFoundError, match="/srv/odd/nothing"):
        odd.restore("db1", saved, folder=tmp_path / "out", paths=("/srv/odd/nothing",))


def test_files_that_the_point_does_not_have_stay_unless_asked_for_exactly(odd):
    saved = odd.save("db1", "filesystems.odd")
    with guest.writable(odd.hypervisor, "db1") as files:
        (files.root / "srv/odd/new").write_text("new")

    odd.restore("db1", saved)
    assert b"/new" in odd.describe("db1", "srv/odd")
    odd.restore("db1", saved, exact=True)
    assert b"/new" not in odd.describe("db1", "srv/odd")


def test_a_tar_export_holds_what_gnu_tar_needs(odd, tmp_path):
    saved = odd.save("db1", "filesystems.odd")
    (tmp_path / "out").mkdir()
    with (tmp_path / "export.tar").open("wb") as file:
        export_tar(odd.chunks, saved, file)

    options = ["--xattrs", "--xattrs-include=*", "--acls", "--same-owner", "-p"]
    subprocess.run(["tar", "-C", tmp_path / "out", *options, "-xf", tmp_path / "export.tar"], check=True)
    want = odd.describe("db1", "srv/odd")
    del want[b"/socket"]
    got = describe(tmp_path / "out/srv/odd")
    assert got.keys() == want.keys()
    assert [path for path in want if got[path][-1] != want[path][-1] or got[path][:3] != want[path][:3]] == []


def test_without_root_the_ways_that_need_none_are_offered(odd, tmp_path, monkeypatch):
    saved = odd.save("db1", "filesystems.odd")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(AccessError, match=r"2 device nodes.*needs root.*tar archive"):
        odd.restore("db1", saved, folder=tmp_path / "out")


def test_files_are_restored_as_ours_without_their_owners(odd, tmp_path):
    saved = odd.save("db1", "filesystems.odd")

    odd.restore("db1", saved, folder=tmp_path / "out", owners=False)
    tool = (tmp_path / "out/srv/odd/tool").stat()
    assert (tool.st_gid, stat.S_IMODE(tool.st_mode)) == (os.getegid(), 0o750)
    assert not (tmp_path / "out/srv/odd/null").exists()


def test_a_failed_restore_leaves_the_image_untouched(odd):
    saved = odd.save("db1", "filesystems.odd")
    before = (odd.folder / "vms/db1/root.raw").read_bytes()
    damaged = dataclasses.replace(saved, streams={**saved.streams, "content": saved.streams["catalogue"]})

    with pytest.raises(Exception, match="do not restore"):
        odd.restore("db1", damaged)
    assert (odd.folder / "vms/db1/root.raw").read_bytes() == before
    assert sorted(os.listdir(odd.folder / "vms/db1")) == ["root.raw", "vm.json"]


def test_a_full_file_system_is_a_clear_error_and_changes_nothing(odd, tree):
    (tree / "srv/odd/large").write_bytes(os.urandom(40 * MiB))
    odd.add("big", tree)
    saved = odd.save("big", "filesystems.odd")
    with guest.writable(odd.hypervisor, "db1") as files:
        (files.root / "fill").write_bytes(os.urandom(30 * MiB))
    before = (odd.folder / "vms/db1/root.raw").read_bytes()

    with pytest.raises(SourceError, match=r"large: No space left"):
        odd.restore("db1", saved)
    assert (odd.folder / "vms/db1/root.raw").read_bytes() == before


def test_an_image_that_changes_while_its_files_are_saved_is_noticed(odd):
    machine = odd.hypervisor.snapshot("g", {"db1": declare()}).machines["db1"]

    files = GuestFiles(odd.hypervisor, machine)
    files.open()
    write_into(odd.folder / "vms/db1/root.raw", 60 * MiB, b"written meanwhile")

    with pytest.raises(SourceChangedError, match="db1"):
        files.close()


def test_saving_files_does_not_change_the_image(odd):
    before = (odd.folder / "vms/db1/root.raw").read_bytes()

    odd.save("db1", "filesystems.odd")
    assert (odd.folder / "vms/db1/root.raw").read_bytes() == before


def test_file_systems_are_mounted_as_the_guest_does(shelf, tree, tmp_path):
    uuid = "11111111-2222-3333-4444-555555555555"
    (tree / "data").mkdir()
    (tree / "etc/fstab").write_text(f"LABEL=root / ext4 defaults 0 1\nUUID={uuid} /data ext4 defaults 0 2\n")
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/sub/file").write_text("on the data disk")
    shelf.add("db1", tree, others=[("data", Volume(tmp_path / "data", uuid=uuid))])
    vm = declare("root", "data")

    saved = shelf.save("db1", "filesystems.data", vm)
    shelf.restore("db1", saved, vm, folder=tmp_path / "out")
    assert (tmp_path / "out/data/sub/file").read_text() == "on the data disk"


def test_links_of_the_guest_never_lead_out_of_it(shelf, tree):
    (tree / "opt").mkdir()
    os.symlink("/etc/erp", tree / "opt/erp")
    os.symlink("../../../../../../etc", tree / "data")
    shelf.add("db1", tree)

    with pytest.raises(SourceError, match=r"/opt/erp"):
        shelf.save("db1", "filesystems.linked")
    assert shelf.save("db1", "filesystems.data").facts["paths"] == "/etc"


def test_a_path_that_is_not_in_the_guest_is_named(shelf, tree):
    shelf.add("db1", tree)

    with pytest.raises(SourceError, match=r"VM db1: filesystems\.odd: /srv"):
        shelf.save("db1", "filesystems.odd")


def test_another_file_system_without_a_driver_names_both_ways(shelf, tree):
    shelf.add("db1", tree)
    with (shelf.folder / "vms/db1/root.raw").open("r+b") as file:
        file.seek(MiB)
        file.write(b"XFSB" + bytes(4092))

    with pytest.raises(UnsupportedError, match=r"kernel_mounts: true.*back its disk up whole"):
        shelf.save("db1", "filesystems.odd")


def application(tree):
    for folder in (
        "opt/erp",
        "etc/erp",
        "usr/lib/systemd/system",
        "etc/systemd/system/multi-user.target.wants",
    ):
        (tree / folder).mkdir(parents=True)
    (tree / "opt/erp/run").write_text("#!/bin/sh\n")
    (tree / "opt/erp/cache.tmp").write_text("rubbish")
    (tree / "etc/erp/erp.conf").write_text("port = 1\n")
    unit = tree / "usr/lib/systemd/system/erp.service"
    unit.write_text("[Service]\nExecStart=/opt/erp/run\n")
    os.symlink(
        "/usr/lib/systemd/system/erp.service",
        tree / "etc/systemd/system/multi-user.target.wants/erp.service",
    )
    (tree / "var/lib/dpkg/info").mkdir(parents=True)
    (tree / "var/lib/dpkg/status").write_text(
        "Package: erp\nStatus: install ok installed\nVersion: 1.2\nArchitecture: amd64\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n"
    )
    (tree / "var/lib/dpkg/info/erp.list").write_text("/.\n/opt\n/opt/erp\n/opt/erp/run\n")


def test_an_application_is_saved_with_what_it_was_installed_on(shelf, tree):
    application(tree)
    shelf.add("db1", tree)

    saved = shelf.save("db1", "applications.erp")
    packages = b"".join(shelf.chunks.read_stream(saved.streams["packages"]))
    assert packages == b"erp 1.2 amd64\n"
    assert saved.facts["installed_by"] == "erp"
    assert saved.facts["enabled_units"] == "erp.service"


def test_an_application_comes_back_with_its_unit_and_without_what_was_excluded(shelf, tree, tmp_path):
    application(tree)
    shelf.add("db1", tree)
    (tmp_path / "bare/etc").mkdir(parents=True)
    (tmp_path / "bare/etc/os-release").touch()
    shelf.add("app2", tmp_path / "bare")

    shelf.restore("app2", shelf.save("db1", "applications.erp"))
    found = shelf.describe("app2", "")
    assert b"/etc/systemd/system/multi-user.target.wants/erp.service" in found
    assert {b"/opt/erp/run", b"/etc/erp/erp.conf", b"/usr/lib/systemd/system/erp.service"} <= found.keys()
    assert b"/opt/erp/cache.tmp" not in found


def test_a_unit_that_is_not_there_is_named(shelf, tree):
    application(tree)
    (tree / "usr/lib/systemd/system/erp.service").unlink()
    (tree / "etc/systemd/system/multi-user.target.wants/erp.service").unlink()
    shelf.add("db1", tree)

    with pytest.raises(SourceError, match=r"erp\.service is not in the guest"):
        shelf.save("db1", "applications.erp")


def test_every_entry_of_a_tar_export_can_be_listed(odd):
    saved = odd.save("db1", "filesystems.odd")
    file = io.BytesIO()

    count = export_tar(odd.chunks, saved, file)
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        assert len(archive.getmembers()) == count
