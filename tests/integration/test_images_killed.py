"""Whatever kills vmkeep, and whenever: an image is all old or all new, and nothing is left behind."""

# ruff: noqa: PTH208  (names are what is compared)

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vmkeep.components import guest
from vmkeep.disks import exports, fingerprint, images, journal, qemu_img, scratch
from vmkeep.disks.device import Image
from vmkeep.errors import IntegrityError, SourceChangedError, TemporaryError
from vmkeep.hypervisors.images import ImagesHypervisor
from vmkeep.testing.disks import read
from vmkeep.testing.guests import Volume, build_disk, write_into
from vmkeep.units import MiB

pytestmark = pytest.mark.integration


class Crash(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture
def folder(tmp_path):
    """Two images of zeros, with overlays that hold other data."""
    disks = []
    for name, image_format in (("root", "raw"), ("data", "qcow2")):
        image = Image(name, tmp_path / f"{name}.{image_format}", image_format)
        overlay = tmp_path / f".{name}.writing.qcow2"
        images.create(image.path, image_format, MiB)
        qemu_img.create(overlay, "qcow2", MiB, backing=(image.path, image_format))
        write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", str(overlay)]
        subprocess.run(write, check=True, capture_output=True)
        disks.append(exports.ExportedDisk(image, overlay, (image.path,)))
    return tmp_path, disks


def contents(disks):
    found = []
    for disk in disks:
        with images.ImageSource(disk.image.path, disk.image.format, what="disk") as source:
            found.append(read(source, 0, 1) + read(source, 64 * 1024, 1))
    return found


def crash_at(monkeypatch, count):
    """Let the process end at the *count*-th change that the journal makes."""
    left = [count]

    def counted(function):
        def call(*arguments, **keywords):
            left[0] -= 1
            if left[0] == 0:
                raise Crash
            return function(*arguments, **keywords)

        return call

    for owner, name in (
        (qemu_img, "rebase"),
        (qemu_img, "commit"),
        (journal, "flush_folder"),
        (Path, "replace"),
        (Path, "unlink"),
    ):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.parametrize("count", range(1, 22))
def test_a_commit_that_was_killed_anywhere_is_all_or_nothing(folder, monkeypatch, count):
    path, disks = folder
    marks = [fingerprint.fingerprint(disk.files) for disk in disks]
    with monkeypatch.context() as patch, contextlib.suppress(Crash), journal.exclusive(path) as changes:
        crash_at(patch, count)
        changes.commit(disks, marks)

    journal.finish(path)
    old, new = [b"\0\0", b"\0\0"], [b"\7\0", b"\7\0"]
    assert contents(disks) == (old if disks[0].overlay.exists() else new)
    assert not list(path.glob(".*.committing"))
    assert not (path / journal.NAME).exists()


def test_an_image_is_out_of_reach_while_it_is_half_written(folder, monkeypatch):
    path, disks = folder
    marks = [fingerprint.fingerprint(disk.files) for disk in disks]
    seen = []
    monkeypatch.setattr(qemu_img, "commit", lambda _: seen.append(sorted(os.listdir(path))))

    with journal.exclusive(path) as changes:
        changes.commit(disks, marks)
    assert not {"root.raw", "data.qcow2"} & set(seen[0])


def test_a_vm_that_ran_after_the_decision_keeps_its_changes(folder):
    path, disks = folder
    marks = [fingerprint.fingerprint(disk.files) for disk in disks]
    write_into(path / "root.raw", 0, b"guest")

    with journal.exclusive(path) as changes, pytest.raises(SourceChangedError, match="given up"):
        changes.commit(disks, marks)
    assert (path / "root.raw").read_bytes()[:5] == b"guest"
    assert not list(path.glob(".*"))


def test_a_damaged_journal_is_not_guessed_at(tmp_path):
    (tmp_path / journal.NAME).write_text('{"commits": ')

    with pytest.raises(IntegrityError, match="damaged"):
        journal.finish(tmp_path)


def test_two_restores_into_one_vm_wait_for_each_other(tmp_path):
    with (
        journal.exclusive(tmp_path),
        pytest.raises(TemporaryError, match="another vmkeep"),
        journal.exclusive(tmp_path, wait_s=0.1),
    ):
        pass


SCRIPT = """
import sys, time
from pathlib import Path
from vmkeep.components import guest
from vmkeep.hypervisors.images import ImagesHypervisor
with guest.writable(ImagesHypervisor("shelf", Path(sys.argv[1])), "db1") as tree:
    (tree.root / "half").write_bytes(b"x" * 5_000_000)
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_restore_that_is_killed_changes_nothing_and_is_cleaned_up(tmp_path):
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/os-release").touch()
    image = tmp_path / "vms/db1/root.raw"
    image.parent.mkdir(parents=True)
    build_disk(image, [Volume(tmp_path / "tree", size=32 * MiB)])
    hypervisor = ImagesHypervisor("shelf", tmp_path / "vms")
    image.parent.joinpath("vm.json").write_text(
        '{"name": "db1", "uuid": "1", "cpus": 1, "memory": 1, "firmware": "bios",'
        ' "disks": [{"name": "root", "file": "root.raw", "format": "raw", "size": 34603008}]}'
    )
    before = image.read_bytes()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "vms")], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.kill()
    process.communicate()

    removed = scratch.reap()
    assert [path for path in removed if f"-{process.pid}-" in path.name]
    assert image.read_bytes() == before
    assert not [p for p in scratch.mounts_below(Path(tempfile.gettempdir())) if f"-{process.pid}-" in str(p)]
    assert not _daemons(f"vmkeep-{process.pid}-")
    with guest.writable(hypervisor, "db1") as tree:
        assert not (tree.root / "half").exists()
    assert sorted(os.listdir(image.parent)) == ["root.raw", "vm.json"]


def _daemons(name):
    """Return the processes with *name* in their command line; the ended ones get a moment."""
    for _ in range(600):
        found = [
            path
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if name.encode() in _bytes(path) and b"pytest" not in _bytes(path)
        ]
        if not found:
            return []
        time.sleep(0.05)
    return found


def _bytes(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_the_folders_of_living_processes_are_left_alone():
    with scratch.scratch_folder() as folder:
        assert folder not in scratch.reap()
        assert folder.exists()


def test_the_folder_of_an_owner_in_another_container_is_left_alone(monkeypatch):
    with scratch.scratch_folder() as folder:
        monkeypatch.setattr(scratch, "started", lambda _: 0)  # as a process that we cannot see
        assert folder not in scratch.reap()
        assert folder.exists()
