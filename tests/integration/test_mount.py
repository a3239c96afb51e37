"""Disks of a recovery point, served to real QEMU tools."""

import json
import os
import random
import re
import signal
import subprocess
import sys

import pytest

from vmkeep.disks import scratch
from vmkeep.errors import InputError, NotFoundError
from vmkeep.operations import repositories
from vmkeep.operations.mount import Where, mounted
from vmkeep.testing.site import Site
from vmkeep.units import MiB

pytestmark = pytest.mark.integration


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    site = Site(tmp_path)
    site.run("backup")
    return site


def tool(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_qemu_img_reads_what_was_saved_and_sees_the_holes(site, tmp_path):
    with mounted(site.file, "db1", "latest", Where()) as mount:
        tool("qemu-img", "convert", "-O", "raw", mount.uris["root"], str(tmp_path / "root.raw"))
        ranges = json.loads(tool("qemu-img", "map", "--output=json", mount.uris["root"]))
        listed = tool("qemu-nbd", "--list", "-k", mount.uris["root"].partition("socket=")[2])

    assert (tmp_path / "root.raw").read_bytes() == site.image("db1").read_bytes()
    assert [one for one in ranges if one["zero"]]
    assert sum(one["length"] for one in ranges if one["data"]) < 5 * MiB
    assert "root" in listed
    assert "data" in listed


def test_any_range_can_be_read(site):
    content = site.image("db1").read_bytes()
    draw = random.Random(3)
    with mounted(site.file, "db1/root", "latest", Where()) as mount:
        for _ in range(10):
            offset = draw.randrange(len(content) - 1)
            length = draw.randrange(1, min(2 * MiB, len(content) - offset))
            out = tool("qemu-io", "-r", "-f", "raw", "-c", f"read -v {offset} {length}", mount.uris["root"])
            lines = re.findall(r"^[0-9a-f]+:  ((?:[0-9a-f]{2} )+)", out, re.MULTILINE)
            shown = bytes.fromhex("".join(lines))
            assert shown == content[offset : offset + length]


def test_nothing_can_be_written(site):
    with mounted(site.file, "db1/root", "latest", Where()) as mount:
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write 0 512", mount.uris["root"]],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    assert done.returncode
    assert "Permission denied" in done.stderr


def test_disks_are_raw_files_too(site, tmp_path):
    folder = tmp_path / "disks"
    with mounted(site.file, "db1", "latest", Where(folder=folder)) as mount:
        found = {name: path.read_bytes() for name, path in mount.files.items()}
        with (
            pytest.raises(OSError, match=r"not permitted|denied|Read-only"),
            mount.files["root"].open("r+b", buffering=0) as file,
        ):
            file.write(b"x")

    assert found == {name: site.image("db1", name).read_bytes() for name in ("root", "data")}
    assert list(folder.iterdir()) == []


def test_what_is_mounted_is_not_collected(site):
    (point,) = site.points("db1")
    content = site.image("db1").read_bytes()
    site.write("db1", seed="second")
    site.write("db1", "data", seed="second")
    site.run("backup")

    with mounted(site.file, "db1", point.session, Where()) as mount:
        with repositories.open_repository(site.file) as repository:
            repository.forget(point, "test")
            repository.collect()
        copy = site.folder / "copy.raw"
        tool("qemu-img", "convert", "-O", "raw", mount.uris["root"], str(copy))

    assert copy.read_bytes() == content


@pytest.mark.parametrize(
    ("target", "session", "error"),
    [("db1/rot", "latest", InputError), ("nobody", "latest", NotFoundError), ("db1", "2020", NotFoundError)],
)
def test_what_is_not_there_is_a_clear_error(site, target, session, error):
    with pytest.raises(error, match=target.partition("/")[0]), mounted(site.file, target, session, Where()):
        pass


def test_a_folder_with_such_files_is_refused_and_nothing_stays(site, tmp_path):
    (tmp_path / "root.raw").write_bytes(b"mine")

    with (
        pytest.raises(InputError, match="say an empty folder"),
        mounted(site.file, "db1/root", "latest", Where(folder=tmp_path)),
    ):
        pass
    assert (tmp_path / "root.raw").read_bytes() == b"mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_nothing_stays(site, tmp_path, number):
    with started(site, "--socket", str(tmp_path / "s")) as process:
        before = tool("qemu-img", "info", json.loads(next_object(process))["uris"]["root"])
        process.send_signal(number)

        assert process.wait(30) == 0
    assert "file format" in before
    assert not (tmp_path / "s").exists()
    with repositories.open_repository(site.file) as repository:
        assert [*repository.store.list("open/")] == []


def test_one_that_was_killed_is_cleared_away_by_the_next(site, tmp_path):
    with started(site, "--files", str(tmp_path / "disks")) as process:
        next_object(process)
        process.kill()

    left = tmp_path / "disks" / "root.raw"
    real = left.readlink()
    assert os.path.ismount(real)

    assert real.parent in scratch.reap()

    assert not real.exists()
    with mounted(site.file, "db1/root", "latest", Where(folder=tmp_path / "disks")):
        assert left.read_bytes() == site.image("db1").read_bytes()


def started(site, *options):
    command = [sys.executable, "-c", "import sys; from vmkeep.cli import main; sys.exit(main())"]
    return subprocess.Popen(
        [*command, "mount", "db1/root", "--fleet", str(site.path), "--json", *options],
        stdout=subprocess.PIPE,
        text=True,
    )


def next_object(process):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.rstrip() == "}":
            break
    return "".join(lines)
