"""A server ends by itself, at whatever moment others look for it: then all is well, nothing comes back."""

import fcntl
import socket
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmkeep.errors import InputError, NotFoundError, TemporaryError
from vmkeep.operations import instant, reap, server, serving
from vmkeep.operations.serving import Serving

FLEET = """\
version: 1
fleet: lab
repository: {store: ./repository, key: {file: ./key}}
hypervisors: {here: {driver: libvirt, uri: "qemu:///system"}}
vms: {db1: {hypervisor: here, disks: [{name: root, size: 1GiB}]}}
"""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """What is noted of a VM that runs from a server."""
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    streams = SimpleNamespace(folder=lambda _vm: tmp_path, behind=lambda _vm: [])
    monkeypatch.setattr(Serving, "streams", lambda _self: streams)
    what = Serving(str(path), "here", "db1", "db1", "20260101T000000Z-00000000", None, "run", ("root",))
    serving.write(what)
    return what


@pytest.fixture
def another(served):
    """Another server that is at work, as far as its lock says."""
    with (served.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def test_a_folder_that_is_being_removed_is_none_of_a_server_and_goes(served):
    gone = served.folder.with_name(f".{served.folder.name}.1")
    served.folder.rename(gone)

    assert [*serving.all_of("lab")] == []
    assert reap.reap("lab") == []
    assert not gone.exists()


def test_what_was_let_go_is_not_noted_again(served):
    serving.forget(served.folder)

    with pytest.raises(NotFoundError):
        serving.update(served)
    assert instant.follow(served, progress=lambda _size: None) == 0
    assert not served.folder.exists()


@pytest.mark.usefixtures("another")
def test_who_waits_for_a_server_that_lets_its_vm_go_is_done(served):
    later = threading.Timer(0.5, lambda: serving.forget(served.folder))
    later.start()

    begun = time.monotonic()
    assert instant.follow(served, progress=lambda _size: None) == 0
    assert time.monotonic() - begun < 30
    later.join()
    assert not served.folder.exists()


def test_a_server_is_started_again_when_the_one_that_it_left_the_work_to_has_ended(
    served, another, monkeypatch
):
    listener = socket.socket(socket.AF_UNIX)
    started = []

    def start(_serving):
        started.append(1)
        if len(started) == 2:
            listener.bind(str(address))
            listener.listen()
            threading.Thread(target=lambda: listener.accept()[0].send(b"N"), daemon=True).start()
        else:
            fcntl.flock(another, fcntl.LOCK_UN)
        return SimpleNamespace(poll=lambda: 0)

    address = served.streams().folder("db1") / serving.SOCKET
    monkeypatch.setattr(serving, "_started", start)
    with listener:
        assert serving.ensure(served) == Path(address)
    assert len(started) == 2


def test_a_vm_keeps_its_server_when_its_fleet_is_given_another_name(served):
    there = serving.read(served.folder)
    Path(served.fleet).write_text(FLEET.replace("fleet: lab", "fleet: other"))

    assert server._needed(there, SimpleNamespace(connections=0), waited=0.0)
    assert there.folder == Path(there.kept_in)


def test_a_vm_keeps_its_server_when_the_fleet_file_names_its_hypervisor_no_more(served, monkeypatch):
    there = replace(serving.read(served.folder), in_place=True)
    monkeypatch.undo()
    serving.write(there)
    Path(served.fleet).write_text(FLEET.replace("here", "elsewhere"))

    assert server._needed(there, SimpleNamespace(connections=0), waited=0.0)
    with pytest.raises(InputError, match="declare it until"):
        there.streams()


def test_a_vm_keeps_its_server_when_something_else_than_its_note_is_missing(served):
    there = replace(serving.read(served.folder), in_place=True)
    serving.write(there)
    there.streams().behind = raising(NotFoundError("there is no storage pool"))

    assert server._needed(there, SimpleNamespace(connections=0), waited=0.0)
    serving.forget(there.folder)
    assert not server._needed(there, SimpleNamespace(connections=0), waited=0.0)


@pytest.mark.usefixtures("another")
def test_a_server_that_has_ended_is_no_zombie_though_nobody_asks_for_it(served):
    number = serving._started(served).pid  # it finds another one at work

    deadline = time.monotonic() + 30
    while Path(f"/proc/{number}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("another")
def test_a_process_that_has_the_number_of_a_dead_server_is_left_alone(served, monkeypatch):
    monkeypatch.setattr(serving, "_ENDS_S", 0.1)
    with subprocess.Popen(["sleep", "60"]) as innocent:
        (served.folder / "pid").write_text(str(innocent.pid))

        with pytest.raises(TemporaryError, match="does not end"):
            serving.end(served.folder)
        assert innocent.poll() is None
        innocent.kill()


def raising(error):
    def fail(*_arguments):
        raise error

    return fail
