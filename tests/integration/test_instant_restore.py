"""VMs run from their recovery point at once, and their data streams in behind them: nothing is lost."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import libvirt
import pytest

from vmkeep.cli import main
from vmkeep.disks import qemu_img
from vmkeep.errors import InputError, SourceError, TemporaryError, UnsupportedError
from vmkeep.guests.agent import AgentGuest
from vmkeep.hypervisors.libvirt.streams import LibvirtStreams
from vmkeep.operations import instant, reap, repositories, serving
from vmkeep.operations.direct import run_direct
from vmkeep.planning import State
from vmkeep.testing import tiny_guest
from vmkeep.testing.boot_disk import build_boot_disk
from vmkeep.testing.rack import Rack
from vmkeep.units import KiB, MiB

pytestmark = pytest.mark.integration

TWO_DISKS = "vms:\n  db1: {disks: [{name: root, size: 24MiB}, {name: data, size: 4MiB}]}\n"
BOOTING = """\
vms:
  db1:
    memory: 256MiB
    disks: [{name: root, size: 128MiB}]
    guest: {agent: true}
    health: [{agent: true, timeout: 180s}]
"""
SLOW = 3 * MiB
"""Bytes a second at which data streams in where a test needs it not to be over."""


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr("vmkeep.operations.instant._POLL_S", 0.1)
    yield
    for note in (tmp_path / "state").glob("*/serving/*/[!.]*/serving.json"):
        serving.end(note.parent)


@pytest.fixture
def rack(libvirtd, tmp_path):
    """A VM without a guest in it that was saved, and its disks as they were."""
    rack = Rack(tmp_path, libvirtd, TWO_DISKS)
    rack.pause("db1")
    rack.poke("db1", "root", at="4M", length="16M", pattern=0x11)
    rack.poke("db1", "data", at="1M", length="1M", pattern=0x12)
    rack.domain("db1").destroy()
    assert rack.run("backup").exit_code == 0
    return rack


class KilledError(Exception):
    """The process that restores is no more: what it would do in its end is not done."""


def until(holds, *, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def is_behind(rack, vm="db2"):
    return [one.disk for one in rack.hypervisor.streams.behind(vm)]


def streams(rack, vm="db2"):
    return any(one.done for one in rack.hypervisor.streams.behind(vm))


def copied(rack, vm="db2"):
    """Tell whether QEMU has copied all; let it begin with what it has not begun with."""
    behind = rack.hypervisor.streams.behind(vm)
    if any(not one.size for one in behind):
        rack.hypervisor.streams.stream(vm)
    return not behind


def served(rack, vm="db2"):
    return instant.find(rack.file, vm)


def kill_server(rack, vm="db2"):
    os.kill(int((served(rack, vm).folder / "pid").read_text()), signal.SIGKILL)
    until(lambda: not serving.is_alive(served(rack, vm).folder))


def finish(rack, vm="db2"):
    return instant.follow(served(rack, vm), progress=lambda _size: None)


def restoring(rack, *more):
    """Start a restore in a process of its own, and return that when data streams in."""
    command = ["restore", "--direct", "--instant", "--as", "db1=db2", "--bandwidth", f"{SLOW}B/s", *more]
    program = f"import sys; from vmkeep.cli import main; sys.exit(main({[*command, '-f', str(rack.path)]!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    until(lambda: process.poll() is not None or streams(rack))
    assert process.poll() is None, process.stdout.read()
    return process


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()


def expected(rack, writes=()):
    """Return what the VM's disks must hold: what was saved, and what was written since."""
    disks = {disk: bytearray(rack.content("db1", disk)) for disk in ("root", "data")}
    for disk, at, length, pattern in writes:
        disks[disk][at : at + length] = bytes([pattern]) * length
    return disks


def write(rack, *writes, vm="db2"):
    for disk, at, length, pattern in writes:
        rack.poke(vm, disk, at=str(at), length=str(length), pattern=pattern)


def assert_whole(rack, writes=(), vm="db2"):
    """Check that a VM needs no server, has all data, and that nothing else is left."""
    wanted = expected(rack, writes)
    assert {disk: rack.content(vm, disk) == bytes(wanted[disk]) for disk in wanted} == {
        "root": True, "data": True,
    }  # fmt: skip
    for image in rack.hypervisor.images(vm):
        assert qemu_img.backing(image.path, what=vm) == ""
    assert_nothing_left(rack, vm)


def assert_nothing_left(rack, vm="db2"):
    assert [*serving.all_of(rack.file)] == []
    assert not (rack.daemon.sockets / "served" / vm / serving.SOCKET).exists()
    assert "streaming" not in rack.domain(vm).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    with repositories.open_repository(rack.file) as repository:
        pins = [one.key.partition("/")[2] for one in repository.store.list("open/")]
    assert {*pins} == pins_of_killed_runs(rack)  # which may be continued


def pins_of_killed_runs(rack):
    return {json.loads(pin.read_text())["reader"] for pin in rack.folder.glob("state/*/runs/*/pin")}


WRITES = (("root", 8 * MiB, 64 * KiB, 0x77), ("root", 19 * MiB + 512, 1024, 0x78), ("data", 0, 512, 0x79))


def test_what_a_vm_writes_while_data_streams_in_stays_and_all_else_is_as_it_was_saved(rack):
    process = restoring(rack)
    write(rack, *WRITES)
    out = process.communicate(timeout=120)[0].decode()

    assert process.returncode == 0, out
    assert_whole(rack, WRITES)


def test_a_restore_that_is_killed_goes_on_without_it_until_nothing_is_left(rack):
    kill(restoring(rack))
    write(rack, *WRITES)

    until(lambda: not [*serving.all_of(rack.file)])
    assert_whole(rack, WRITES)


def test_a_killed_restore_is_continued(rack):
    kill(restoring(rack))
    (folder,) = (path for path in (rack.folder / "state/rack/runs").iterdir() if "Z-" in path.name)
    write(rack, *WRITES)

    report = rack.run("restore", resume=folder.name, instant=True, rename={"db1": "db2"})
    assert report.exit_code == 0, report.outcomes
    assert_whole(rack, WRITES)


def test_a_server_that_is_killed_is_started_again_and_the_vm_goes_on(rack):
    process = restoring(rack)
    write(rack, *WRITES)
    kill_server(rack)
    out = process.communicate(timeout=120)[0].decode()

    assert process.returncode == 0, out
    assert_whole(rack, WRITES)


def test_a_vm_that_is_killed_has_all_that_it_wrote_and_only_vmkeep_starts_it(rack):
    kill(restoring(rack))
    write(rack, *WRITES)
    os.kill(rack.daemon.qemu("db2"), signal.SIGKILL)
    until(lambda: not rack.domain("db2").isActive())

    with pytest.raises(libvirt.libvirtError, match="vmkeep-is-streaming"):
        rack.domain("db2").create()
    with pytest.raises(SourceError, match="vmkeep stream db2 --start"):
        finish(rack)
    instant.power_on(served(rack))
    finish(rack)
    assert_whole(rack, WRITES)


def test_a_vm_killed_in_the_moment_when_all_is_copied_loses_nothing(rack):
    """QEMU has taken the reference to the server away, and not written all that it copied."""
    report_of_a_killed_restore(rack)
    with serving.turn(served(rack).folder) as ours:  # or the server would finish it
        assert ours
        with pytest.MonkeyPatch.context() as patch:  # nor do we, when it is copied as we look
            patch.setattr(LibvirtStreams, "_finish", lambda *_: [])
            until(lambda: copied(rack))
        os.kill(rack.daemon.qemu("db2"), signal.SIGKILL)
        until(lambda: not rack.domain("db2").isActive())

    assert sorted(is_behind(rack)) == ["data", "root"]
    instant.power_on(served(rack))
    finish(rack)
    assert_whole(rack)


def report_of_a_killed_restore(rack, **how):
    """Restore, and stop when the VM runs from its server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmkeep.operations.instant.follow", killed)
        return rack.run("restore", instant=True, **({"rename": {"db1": "db2"}} | how))


def killed(*_arguments, **_how):
    raise KilledError


def test_server_and_vm_killed_together_as_when_the_host_dies(rack):
    process = restoring(rack)
    write(rack, *WRITES)
    kill(process)
    kill_server(rack)
    os.kill(rack.daemon.qemu("db2"), signal.SIGKILL)
    until(lambda: not rack.domain("db2").isActive())

    instant.power_on(served(rack))
    finish(rack)
    assert_whole(rack, WRITES)


def test_a_daemon_that_is_killed_meanwhile_changes_nothing(rack):
    process = restoring(rack)
    kill(process)
    rack.daemon.kill()
    rack.daemon.restart()

    finish(rack)
    assert_whole(rack)


def test_in_place_the_old_disks_stay_until_all_data_is_there(rack):
    folder = rack.daemon.pools / "default"
    old = {path.name for path in folder.iterdir()}
    before = expected(rack)
    report_of_a_killed_restore(rack, rename={}, overwrite=True)

    assert old < {path.name for path in folder.iterdir()}
    finish(rack, "db1")
    assert old.isdisjoint(path.name for path in folder.iterdir())
    assert {disk: rack.content("db1", disk) for disk in before} == {k: bytes(v) for k, v in before.items()}
    assert_nothing_left(rack, "db1")


def test_a_vm_whose_data_streams_in_is_not_saved_nor_changed(rack):
    report_of_a_killed_restore(rack, rename={}, overwrite=True)

    for operation in ("backup", "configure"):
        with pytest.raises(TemporaryError, match="vmkeep stream db1"):
            raise next(iter(rack.run(operation).errors.values()))
    finish(rack, "db1")
    assert rack.run("backup").exit_code == 0


def test_another_restore_takes_the_place_of_one_whose_data_streams_in(rack):
    before = expected(rack)
    report_of_a_killed_restore(rack, rename={}, overwrite=True)
    rack.domain("db1").destroy()

    assert rack.run("restore", overwrite=True).exit_code == 0
    assert {disk: rack.content("db1", disk) for disk in before} == {k: bytes(v) for k, v in before.items()}
    until(lambda: not [*serving.all_of(rack.file)])
    assert len([*(rack.daemon.pools / "default").iterdir()]) == 2


@pytest.fixture
def twice(rack):
    """A VM that was saved twice, and was restored instantly from the first point: it is powered off."""
    before, first = expected(rack), rack.points("db1")[-1].session
    rack.pause("db1")
    rack.poke("db1", "root", at="4M", length="8M", pattern=0x99)
    rack.domain("db1").destroy()
    assert rack.run("backup").exit_code == 0
    report_of_a_killed_restore(rack, rename={}, overwrite=True, points={"db1": first})
    write(rack, ("root", 20 * MiB, 4096, 0x55), vm="db1")
    rack.domain("db1").destroy()
    before["root"][20 * MiB : 20 * MiB + 4096] = bytes([0x55]) * 4096
    return rack, before


def test_a_vm_never_runs_over_another_point_than_the_one_that_it_was_restored_from(twice):
    rack, _ = twice
    what = served(rack, "db1")
    serving.end(what.folder)
    for name in ("pin", "point"):
        (what.folder / name).unlink()
    serving.write(replace(what, session=rack.points("db1")[-1].session))

    with pytest.raises(SourceError, match="export"):
        instant.power_on(served(rack, "db1"))
    assert not rack.domain("db1").isActive()


def refused(*_arguments):
    raise TemporaryError("no space left on device")


def as_the_first(rack, before):
    """Check that the VM goes on from the first point with all that it wrote, and that nothing is left."""
    instant.power_on(served(rack, "db1"))
    finish(rack, "db1")
    assert {disk: rack.content("db1", disk) for disk in before} == {k: bytes(v) for k, v in before.items()}
    assert_nothing_left(rack, "db1")


def test_a_restore_that_fails_over_one_whose_data_streams_in_leaves_that_as_it_was(twice, monkeypatch):
    rack, before = twice
    old = served(rack, "db1")
    with monkeypatch.context() as patch:
        patch.setattr(qemu_img, "create_over", refused)
        assert rack.run("restore", instant=True, overwrite=True).exit_code != 0

    assert served(rack, "db1") == old
    as_the_first(rack, before)


def test_a_restore_that_is_killed_over_one_whose_data_streams_in_is_undone_by_the_next_run(
    twice, monkeypatch
):
    rack, before = twice
    old = served(rack, "db1")
    with monkeypatch.context() as patch:
        patch.setattr("vmkeep.operations.replaced.abandon", lambda *_: None)
        patch.setattr(qemu_img, "create_over", refused)
        rack.run("restore", instant=True, overwrite=True)
    assert served(rack, "db1").session != old.session

    os.utime(old.folder / "serving.json", (0, 0))
    assert reap.reap(rack.file) == []
    assert served(rack, "db1") == old
    as_the_first(rack, before)


def test_a_restore_over_one_whose_data_streams_in_lets_that_go_when_it_is_in_place(twice):
    rack, _ = twice
    rack_before = rack.saved_digest("db1", "root")
    report_of_a_killed_restore(rack, rename={}, overwrite=True)

    finish(rack, "db1")
    assert rack.digest("db1", "root") == rack_before
    assert_nothing_left(rack, "db1")


def test_a_fleet_that_is_given_another_name_keeps_its_vms_and_their_servers(rack, capsys):
    before = expected(rack)
    report_of_a_killed_restore(rack, rename={}, overwrite=True)
    kill_server(rack, "db1")
    rack.path.write_text(rack.path.read_text().replace("fleet: rack", "fleet: shelf"))

    assert reap.reap(rack.file) == []
    assert main(["stream", "-f", str(rack.path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["vm"], found["server"]) == ("db1", True)
    rack.domain("db1").destroy()
    report_of_a_killed_restore(rack, rename={}, overwrite=True)  # in the place of the first one
    assert len([*serving.all_of(rack.file)]) == 1
    finish(rack, "db1")
    assert {disk: rack.content("db1", disk) for disk in before} == {k: bytes(v) for k, v in before.items()}
    assert_nothing_left(rack, "db1")


def test_what_is_served_is_not_collected_though_it_is_forgotten(rack):
    report_of_a_killed_restore(rack)
    with repositories.open_repository(rack.file) as repository:
        repository.forget(repository.point("db1"), "tests")
        later = datetime.now(UTC) + timedelta(days=6)
        assert repository.collect(now=later).waits_for
    finish(rack)

    assert_whole(rack)


def test_the_command_line_shows_what_streams_in_and_waits_for_it(rack, capsys):
    report_of_a_killed_restore(rack)
    with pytest.raises(InputError, match="vmkeep stream db2"):
        rack.run("restore", instant=True, rename={"db1": "db2"})

    assert main(["stream", "-f", str(rack.path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["vm"], found["server"], sorted(found["disks"])) == ("db2", True, ["data", "root"])
    assert main(["stream", "db2", "-f", str(rack.path)]) == 0
    assert main(["stream", "-f", str(rack.path)]) == 0
    assert "all restored VMs have all of their data" in capsys.readouterr().out
    assert_whole(rack)


def test_what_is_only_on_the_way_is_refused_for_vms_that_cannot(site):
    assert site.run("backup").exit_code == 0
    with pytest.raises(UnsupportedError, match=r"driver images .* leave --instant out"):
        run_direct(site.request("restore", instant=True, overwrite=True))


def test_a_vm_that_fails_its_gate_stays_for_people_to_look_at(libvirtd, tmp_path):
    rack = Rack(tmp_path, libvirtd, BOOTING.replace("180s", "1s"))
    assert rack.run("backup").exit_code == 0

    report = rack.run("restore", instant=True, rename={"db1": "db2"})
    assert report.outcomes["stream db1"].state is State.SKIPPED
    assert rack.domain("db2").isActive()
    assert serving.is_alive(served(rack).folder)
    finish(rack)
    assert_nothing_left(rack)


@pytest.fixture
def guest(libvirtd, tmp_path):
    """A rack with a guest that was saved, restored, and runs from its server; what its file must hold."""
    rack = Rack(tmp_path, libvirtd, BOOTING)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "orders").write_bytes(os.urandom(40 * MiB))
    build_boot_disk(tmp_path / "boot.raw", tree, tiny_guest.build(tmp_path), size=128 * MiB)
    rack.fill("db1", "root", tmp_path / "boot.raw")
    assert rack.run("backup").exit_code == 0
    report_of_a_killed_restore(rack)
    return rack


def inside(rack, script):
    guest = AgentGuest(rack.hypervisor.agent("db2"), name="db2")
    return guest.run(["sh", "-c", script], timeout_s=120).out.decode()


def answers(rack):
    try:
        return inside(rack, "echo yes")
    except (TemporaryError, SourceError):
        return ""


def begin_to_write(rack):
    """Let the guest write numbers one by one, and read a large file meanwhile; return the last number."""
    writer = "(while :; do echo $(($(wc -l </data/log)+1)) >>/data/log; sync; done)"
    inside(
        rack, f"touch /data/log; {writer} >/dev/null 2>&1 </dev/null & sha256sum /data/orders >/dev/null &"
    )
    return int(until(lambda: inside(rack, "tail -n1 /data/log")))


def assert_all_is_there(rack, last):
    wanted = hashlib.sha256((rack.folder / "tree/orders").read_bytes()).hexdigest()
    for before in ("", "echo 3 >/proc/sys/vm/drop_caches; "):
        assert inside(rack, f"{before}sha256sum /data/orders").split()[0] == wanted
    told = [*map(int, inside(rack, "cat /data/log").split())]
    assert told == [*range(1, len(told) + 1)]
    assert len(told) >= last


def test_a_guest_reads_and_writes_while_its_data_streams_in(guest):
    last = begin_to_write(guest)
    rack_streams_slowly(guest)
    finish(guest)

    assert_all_is_there(guest, last)
    assert_nothing_left(guest)


def rack_streams_slowly(rack):
    rack.hypervisor.streams.stream("db2", bandwidth=SLOW)
    until(lambda: streams(rack))


def test_a_guest_that_runs_from_its_server_goes_on_when_that_was_killed(guest):
    last = begin_to_write(guest)
    life = "cat /proc/sys/kernel/random/boot_id"
    before = inside(guest, life)
    kill_server(guest)
    serving.ensure(served(guest))

    assert until(lambda: answers(guest) and inside(guest, life)) == before
    assert_all_is_there(guest, last)
    finish(guest)
    assert_nothing_left(guest)


def test_a_guest_whose_server_is_killed_while_data_streams_in_has_all_that_it_wrote(guest):
    last = begin_to_write(guest)
    rack_streams_slowly(guest)
    kill_server(guest)
    time.sleep(1)  # its reads fail, and it stands still; or they do not
    finish(guest)

    until(lambda: answers(guest))
    assert_all_is_there(guest, last)
    assert_nothing_left(guest)
