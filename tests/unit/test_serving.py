"""A server ends by itself, at whatever moment others look for it: then all is well, nothing comes back."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmkeep import fleet as fleets
from vmkeep.cli import doctor, stream
from vmkeep.disks import nbd_server
from vmkeep.errors import InputError, NotFoundError, SourceError, TemporaryError, UnsupportedError
from vmkeep.hypervisors.base import Behind
from vmkeep.operations import instant, reap, replaced, server, serving
from vmkeep.operations.serving import Serving
from vmkeep.operations.state import state_folder
from vmkeep.units import MiB

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
    monkeypatch.setattr(Serving, "machine", lambda _self: SimpleNamespace(exists=lambda _vm: True))
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

    assert [*serving.all_of(served.file)] == []
    assert reap.reap(served.file) == []
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
    (served.folder / "pid").write_text(str(os.getpid()))
    monkeypatch.setattr(serving, "_started", start)
    with listener:
        assert serving.ensure(served) == Path(address)
    assert len(started) == 2


def test_a_vm_keeps_its_server_when_its_fleet_is_given_another_name(served):
    there = serving.read(served.folder)
    Path(served.fleet).write_text(FLEET.replace("fleet: lab", "fleet: other"))

    assert server._needed(there, SimpleNamespace(connections=0), server._Doubts("db1"), waited=0.0)
    assert there.folder == Path(there.kept_in)


def test_a_vm_keeps_its_server_when_the_fleet_file_names_its_hypervisor_no_more(served, monkeypatch):
    there = replace(serving.read(served.folder), in_place=True)
    monkeypatch.undo()
    serving.write(there)
    Path(served.fleet).write_text(FLEET.replace("here", "elsewhere"))

    assert server._needed(there, SimpleNamespace(connections=0), server._Doubts("db1"), waited=0.0)
    with pytest.raises(InputError, match="declare it until"):
        there.streams()


def test_a_vm_keeps_its_server_when_something_else_than_its_note_is_missing(served):
    there = replace(serving.read(served.folder), in_place=True)
    serving.write(there)
    there.streams().behind = raising(NotFoundError("there is no storage pool"))

    assert server._needed(there, SimpleNamespace(connections=0), server._Doubts("db1"), waited=0.0)
    serving.forget(there.folder)
    assert not server._needed(there, SimpleNamespace(connections=0), server._Doubts("db1"), waited=0.0)


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


@pytest.mark.parametrize(
    ("added", "removed", "found"),
    [({"colour": "blue"}, "", "colour"), ({}, "session", "session"), ({"disks": "root"}, "", "disks")],
)
def test_a_note_of_another_version_is_named_and_says_what_to_do(served, added, removed, found):
    note = served.folder / "serving.json"
    noted = json.loads(note.read_bytes()) | added
    noted.pop(removed, None)
    note.write_text(json.dumps(noted))

    with pytest.raises(UnsupportedError, match=rf"serving.json .*{found}.* newer or older vmkeep .* VM db1"):
        serving.read(served.folder)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", bytes([255])])
def test_a_note_that_is_none_is_told_too(served, body):
    (served.folder / "serving.json").write_bytes(body)

    with pytest.raises(UnsupportedError, match=r"serving.json is not understood"):
        serving.read(served.folder)


def test_one_note_that_is_not_understood_keeps_no_other_vm_from_its_server(served, monkeypatch, capsys):
    other = replace(served, target="app1", in_place=True)
    serving.write(other)
    (served.folder / "serving.json").write_text("{}")
    ensured = []
    monkeypatch.setattr(serving, "ensure", ensured.append)
    other.streams().behind = lambda _vm: [Behind("root", "nbd")]

    (told,) = reap.reap(served.file)
    assert "here/db1/serving.json is not understood" in told
    assert ensured == [other]
    (check,) = (one for one in doctor._served(served.file) if one.what == "server")
    assert not check.good
    stream.show(served.file, as_json=True)
    printed = capsys.readouterr()
    assert [one["vm"] for one in json.loads(printed.out)] == ["app1"]
    assert "db1/serving.json" in "".join(printed.err.split())
    with pytest.raises(UnsupportedError):
        instant.find(served.file, "db1")


def test_a_vm_keeps_its_server_when_another_version_writes_its_note(served):
    (served.folder / "serving.json").write_text('{"colour": "blue"}')

    assert server._needed(served, SimpleNamespace(connections=0), server._Doubts("db1"), waited=0.0)


def test_a_server_is_not_dismissed_as_long_as_its_hypervisor_cannot_be_asked(served, monkeypatch):
    sockets = served.streams().folder("db1") / "served"
    sockets.mkdir()
    streams = SimpleNamespace(folder=lambda _vm: sockets, behind=lambda _vm: [])
    monkeypatch.setattr(Serving, "streams", raising(NotFoundError("there is no storage pool")))

    with pytest.raises(NotFoundError):
        serving.dismiss(served.folder)
    assert serving.read(served.folder) == served
    monkeypatch.setattr(Serving, "streams", lambda _self: streams)
    serving.dismiss(served.folder)
    assert not served.folder.exists()
    assert not sockets.exists()
    serving.dismiss(served.folder)


def test_a_server_that_a_vm_needs_is_not_dismissed(served):
    served.streams().behind = lambda _vm: [Behind("root", "nbd")]

    with pytest.raises(SourceError, match="VM db1 is there, and needs"):
        serving.dismiss(served.folder)
    assert serving.read(served.folder) == served


def test_a_vm_that_is_not_there_any_more_is_started_once_and_told(served, monkeypatch):
    tries = []

    def start(vm):
        tries.append(vm)
        raise NotFoundError(f"VM {vm}: there is no such domain")

    machine = SimpleNamespace(start=start, exists=lambda _vm: False)
    monkeypatch.setattr(Serving, "machine", lambda _self: machine)
    monkeypatch.setattr(serving, "ensure", lambda _what: None)

    with pytest.raises(NotFoundError, match="no such domain"):
        instant.power_on(served)
    assert tries == ["db1"]
    monkeypatch.setattr(serving, "ensure", raising(NotFoundError("there is no storage pool")))
    with pytest.raises(NotFoundError, match="no storage pool"):
        instant.power_on(served)
    assert tries == ["db1"]


def test_who_follows_a_vm_that_somebody_removes_is_not_told_that_all_is_there(served, monkeypatch):
    monkeypatch.setattr(Serving, "machine", lambda _self: SimpleNamespace(exists=lambda _vm: False))
    serving.forget(served.folder)  # as its server does

    with pytest.raises(NotFoundError, match="VM db1 is not there any more"):
        instant.follow(served, progress=lambda _size: None)


@pytest.mark.parametrize("session", ["20260101T000000Z-00000000", "20260202T000000Z-00000000"])
def test_the_overlays_say_which_of_two_restores_a_vm_is_of(served, session):
    first = replace(served, in_place=True, by_point=True)
    second = replace(first, run="another", session="20260202T000000Z-00000000", in_place=False)
    serving.write(first)
    replaced.set_aside(second)
    serving.write(second)
    served.streams().behind = lambda _vm: [Behind("root", "nbd", export=f"root.{session}")]

    found = replaced.settle(serving.read(served.folder))
    assert found == serving.read(served.folder)
    assert (found.session, found.in_place) == (session, True)
    assert not replaced.is_there(served.folder)


@pytest.fixture
def renamed(served):
    """The fleet file, which has another name than when the VM was restored."""
    path = Path(served.fleet)
    path.write_text(FLEET.replace("fleet: lab", "fleet: other"))
    return fleets.load(path)


def test_what_is_served_is_found_when_its_fleet_is_given_another_name(served, renamed, monkeypatch):
    ensured = []
    monkeypatch.setattr(serving, "ensure", ensured.append)
    served.streams().behind = lambda _vm: [Behind("root", "nbd")]
    old = serving.read(state_folder("lab") / "serving/here/db1")
    os.utime(old.folder / "serving.json", (0, 0))

    assert instant.find(renamed, "db1") == old
    assert serving.folder_of(renamed, "here", "db1") == old.folder
    assert reap.reap(renamed) == []
    assert [one.folder for one in ensured] == [old.folder]


def test_what_another_fleet_serves_is_none_of_ours(served, tmp_path, request):
    (tmp_path / "theirs.yaml").write_text(FLEET)
    serving.write(replace(served, fleet=str(tmp_path / "theirs.yaml"), target="db2"))
    renamed = request.getfixturevalue("renamed")

    assert [one.target for one in serving.all_of(renamed)] == ["db1"]


def test_a_server_says_once_why_it_cannot_be_told_whether_it_is_needed(served, caplog):
    there = replace(serving.read(served.folder), in_place=True)
    serving.write(there)
    doubts = server._Doubts("db1")
    caplog.set_level("INFO", "vmkeep.server")

    def look(*, times=1, error=None):
        there.streams().behind = raising(error) if error else lambda _vm: [Behind("root", "nbd")]
        for _ in range(times):
            assert server._needed(there, SimpleNamespace(connections=0), doubts, waited=0.0)

    look(times=5, error=InputError("line 3: no"))
    look(times=5, error=InputError("line 7: no"))
    with serving.turn(there.folder):  # somebody else looks
        look(times=5)
    look(times=5, error=InputError("line 7: no"))
    look(times=5)
    look(times=5, error=InputError("line 7: no"))
    assert caplog.messages == [
        "VM db1: line 3: no", "VM db1: line 7: no", "VM db1: all is well again", "VM db1: line 7: no",
    ]  # fmt: skip


def test_of_a_log_of_any_size_only_the_end_is_read(served):
    with (served.folder / "log").open("wb") as log:
        log.seek(200 * MiB)
        log.write(b"\nwords before\nlast words\n\n")

    tracemalloc.start()
    try:
        assert serving.last_words(served.folder) == "last words"
        assert tracemalloc.get_traced_memory()[1] < MiB
    finally:
        tracemalloc.stop()


@pytest.fixture
def full(served):
    """A server whose connections are all taken."""
    (served.folder / "pid").write_text(str(os.getpid()))
    address = served.streams().folder("db1") / serving.SOCKET
    disk = SimpleNamespace(size=MiB)
    with nbd_server.serving({"root": disk}, address), contextlib.ExitStack() as crowd:
        for _ in range(nbd_server.MOST_CONNECTIONS):
            client = crowd.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(address))
            assert client.recv(1)
        yield crowd


@pytest.mark.usefixtures("another")  # it is alive
def test_a_server_that_has_no_room_is_not_taken_for_dead(served, full, monkeypatch):
    monkeypatch.setattr(serving, "_started", raising(AssertionError("another one is started")))
    begun = time.monotonic()

    assert serving.ensure(served, room=False).name == serving.SOCKET
    with pytest.raises(TemporaryError, match=r"runs, and all of its connections are taken.*/nbd"):
        serving.ensure(served)
    assert time.monotonic() - begun < 20
    full.close()
    assert serving.ensure(served).name == serving.SOCKET


def test_a_server_of_something_else_is_not_taken_for_ours(served, monkeypatch):
    """Of another fleet, say, that calls a VM the same: its disks are not those that are to be restored."""
    address = served.streams().folder("db1") / serving.SOCKET
    started = []

    def start(what):
        started.append(what)
        (served.folder / "log").write_text(f"cannot serve NBD at {address}: Address already in use\n")
        return SimpleNamespace(poll=lambda: 2, terminate=lambda: None)

    monkeypatch.setattr(serving, "_started", start)
    with nbd_server.serving({"root": SimpleNamespace(size=MiB)}, address):
        for noted in ("", "1"):
            (served.folder / "pid").write_text(noted)
            with pytest.raises(TemporaryError, match=r"does not come up: cannot serve NBD at .* in use"):
                serving.ensure(served)
    assert len(started) == 2


def raising(error):
    def fail(*_arguments):
        raise error

    return fail
