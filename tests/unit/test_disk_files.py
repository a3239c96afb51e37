"""Fingerprints, raw files and tools: what may go wrong on this side of a disk."""

import errno
import os
import time
from types import SimpleNamespace

import pytest

from vmkeep.disks import fingerprint, raw, tools
from vmkeep.disks.raw import RawSource, RawTarget
from vmkeep.errors import SourceChangedError, SourceError, TemporaryError, UnsupportedError
from vmkeep.units import KiB, MiB


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MiB))
    return path


def test_a_fingerprint_stays_while_a_file_is_only_read(file):
    before = fingerprint.fingerprint([file])
    file.read_bytes()

    assert fingerprint.fingerprint([file]) == before


def test_a_write_of_the_same_size_changes_the_fingerprint_even_at_once(file):
    before = fingerprint.fingerprint([file])
    with file.open("r+b") as opened:
        opened.write(b"x")

    assert fingerprint.fingerprint([file]) != before


def test_a_time_that_was_set_back_does_not_hide_a_write(file):
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    before = fingerprint.fingerprint([file])
    with file.open("r+b") as opened:
        opened.write(b"x")
    os.utime(file, ns=times)

    assert fingerprint.fingerprint([file]) != before


def test_a_file_that_was_replaced_by_an_equal_one_is_another(file, tmp_path):
    before = fingerprint.fingerprint([file])
    other = tmp_path / "other"
    other.write_bytes(file.read_bytes())
    other.replace(file)

    assert fingerprint.fingerprint([file]) != before


@pytest.fixture
def waits(monkeypatch):
    """What is waited for, in seconds, where the kernel's clock ticks once in a quarter of an hour."""
    waits = []

    def wait(seconds):
        waits.append(seconds)
        monkeypatch.setattr(fingerprint, "_TICK_S", 0)  # it is over

    monkeypatch.setattr(fingerprint, "_TICK_S", 900)
    monkeypatch.setattr(fingerprint, "time", SimpleNamespace(time=time.time, sleep=wait))
    return waits


def test_a_file_written_just_now_is_waited_for(file, waits):
    file.write_bytes(b"now")
    fingerprint.fingerprint([file])

    (seconds,) = waits
    assert 0 < seconds <= 900


def test_a_time_in_the_future_is_not_waited_for(file, waits):
    os.utime(file, (time.time() + 10_000, time.time() + 10_000))
    fingerprint.fingerprint([file])

    assert waits == []


def test_a_missing_file_has_no_fingerprint(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        fingerprint.fingerprint([tmp_path / "nothing"])


def test_a_raw_target_stays_sparse(tmp_path):
    with RawTarget(tmp_path / "disk", size=64 * MiB) as target:
        target.write(32 * MiB, b"x")

    assert (tmp_path / "disk").stat().st_blocks * 512 < MiB


def test_zeroing_gives_the_space_back(tmp_path):
    with RawTarget(tmp_path / "disk", size=8 * MiB) as target:
        target.write(0, b"x" * 8 * MiB)
        target.zero(0, 8 * MiB)

    assert (tmp_path / "disk").stat().st_blocks == 0


def test_zeroing_works_where_holes_cannot_be_made(file, monkeypatch):
    def refuse(*_):
        raw.ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    file.write_bytes(b"x" * MiB)
    monkeypatch.setattr(raw, "_fallocate", refuse)
    with RawTarget(file) as target:
        target.zero(10, 500 * KiB)

    assert file.read_bytes() == b"x" * 10 + bytes(500 * KiB) + b"x" * (MiB - 10 - 500 * KiB)


def test_an_existing_file_is_not_overwritten_by_a_new_target(file):
    with pytest.raises(SourceError, match="exists"):
        RawTarget(file, size=MiB)


def test_a_disk_that_became_shorter_is_noticed(file):
    with RawSource(file) as source:
        os.truncate(file, 100)
        with pytest.raises(SourceChangedError, match="ends at byte 100"):
            source.read_into(0, memoryview(bytearray(KiB)))


def test_a_pipe_is_no_disk(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(SourceError, match="neither a file nor a block device"):
        RawSource(tmp_path / "pipe")


def test_a_missing_tool_names_its_package(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(tools, "_ADMIN_PATH", "/nowhere")

    with pytest.raises(UnsupportedError, match="apt-get install qemu-utils"):
        tools.run("qemu-img", "info", timeout_s=1)


def test_a_tool_that_does_not_end_is_temporary():
    with pytest.raises(TemporaryError, match="did not end within"):
        tools.run("sleep", "60", timeout_s=0.1)


def test_a_tool_that_fails_is_quoted():
    with pytest.raises(SourceError, match=r"failed \(2\): .*nowhere"):
        tools.run("ls", "/nowhere", timeout_s=10)
