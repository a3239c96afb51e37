"""The driver vsphere: what it does beyond the contract, and when vSphere does not play along."""

import hashlib
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pyVmomi import vim

from vmkeep.components.guest import GuestFiles
from vmkeep.disks import maker
from vmkeep.errors import AccessError, InputError, SourceChangedError, SourceError, TemporaryError
from vmkeep.fleet.model import VM, KeyReference
from vmkeep.fleet.model import VsphereHypervisor as Config
from vmkeep.hypervisors.base import Elsewhere
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.hypervisors.vsphere.connection import Connection, address_of
from vmkeep.hypervisors.vsphere.driver import VsphereHypervisor
from vmkeep.hypervisors.vsphere.holder import Holders
from vmkeep.hypervisors.vsphere.lease import Lease
from vmkeep.testing import vsphere_client
from vmkeep.testing.disks import read
from vmkeep.testing.guests import Volume, build_disk
from vmkeep.units import KiB, MiB

pytestmark = pytest.mark.integration

GRAIN = 64 * KiB
SIZE = 32 * MiB
DEAD = " ".join(["1", "1", *maker.me().split(" ")[2:]])
"""What a process of this host calls itself that does not run any more."""


@pytest.fixture
def dc1(vsphere):
    connection = Connection(
        address_of(vsphere.host, ca_file=vsphere.ca), lambda: (vsphere.user, vsphere.password)
    )
    yield VsphereHypervisor("dc1", connection)
    connection.close()


@pytest.fixture
def client(vsphere):
    client = vsphere_client.Client(vsphere)
    yield client
    client.close()


def declare(**changes):
    return VM.model_validate({"hypervisor": "dc1", "disks": [{"name": "root", "size": "32MiB"}], **changes})


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def made(hypervisor, vsphere, *, running=False, **changes):
    hypervisor.configure("db1", declare(**changes), apply=True)
    vsphere.write("db1", 0, MiB, noise(MiB))
    if running:
        hypervisor.start("db1")


def taken(hypervisor, marks=(), owner="shop"):
    known = {"db1": {"root": list(marks)}}
    return hypervisor.take(hypervisor.prepare("g", {"db1": declare()}, owner=owner, marks=known))


def whole(hypervisor, snapshot):
    """The hash of the disk as the snapshot holds it, and how many bytes of it may hold data."""
    with hypervisor.open_disk(snapshot.machines["db1"], "root") as source:
        content = bytearray(source.size)
        for extent in source.extents():
            source.read_into(extent.start, memoryview(content)[extent.start : extent.end])
        return hashlib.sha256(content).hexdigest(), sum(one.length for one in source.extents())


# --- reading


def test_only_what_is_allocated_is_read_and_it_is_the_disk(dc1, vsphere):
    made(dc1, vsphere)

    snapshot = taken(dc1)
    assert whole(dc1, snapshot) == (vsphere.machine("db1").disks[0].sha256, MiB)
    assert not vsphere.requests("ExportSnapshot")
    dc1.release(snapshot)
    assert not vsphere.machine("db1").snapshots


def test_a_disk_whose_file_cannot_be_read_is_exported_and_is_the_same(dc1, vsphere):
    made(dc1, vsphere, running=True)
    vsphere.settings(lock_running=True)
    before = vsphere.machine("db1").disks[0].sha256
    snapshot = taken(dc1)
    vsphere.write("db1", 0, 0, b"later")

    assert whole(dc1, snapshot)[0] == before
    assert vsphere.requests("ExportSnapshot")
    assert not vsphere.leases()


def test_below_the_snapshot_of_somebody_else_a_disk_is_exported(dc1, vsphere, client):
    made(dc1, vsphere)
    client.snapshot(client.vm("db1"), "before the upgrade")
    vsphere.write("db1", 0, 5 * MiB, b"after it")
    before = vsphere.machine("db1").disks[0].sha256
    snapshot = taken(dc1)

    assert whole(dc1, snapshot)[0] == before
    dc1.release(snapshot)
    assert [one.name for one in vsphere.machine("db1").snapshots] == ["before the upgrade"]


def test_an_export_that_breaks_off_is_an_error_and_leaves_no_lease(dc1, vsphere):
    made(dc1, vsphere, running=True)
    vsphere.settings(lock_running=True)
    snapshot = taken(dc1)
    vsphere.break_transfer("GET /nfc", after=1000)

    with pytest.raises((TemporaryError, SourceError), match="db1"):
        dc1.open_disk(snapshot.machines["db1"], "root")
    assert not vsphere.leases()


def test_a_lease_is_kept_alive_for_as_long_as_it_takes(dc1, vsphere):
    made(dc1, vsphere)
    taken(dc1)
    vsphere.settings(lease_timeout=1)
    (tree,) = dc1._places.machine(dc1._places.find("db1")).snapshots

    with Lease(dc1._connection, "VM db1", tree.snapshot.ExportSnapshot) as lease:
        time.sleep(2.5)
        assert len(vsphere.leases()) == 1
        assert lease.urls
    assert not vsphere.leases()


@pytest.mark.parametrize("locked", [False, True], ids=["by ranges", "by export"])
def test_files_come_out_of_a_vm_that_runs_as_they_were_at_the_snapshot(dc1, vsphere, tmp_path, locked):
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/motd").write_text("hello")
    build_disk(tmp_path / "disk.raw", [Volume(tmp_path / "tree", size=16 * MiB)], size=SIZE)
    made(dc1, vsphere, running=True)
    vsphere.write("db1", 0, 0, (tmp_path / "disk.raw").read_bytes())
    vsphere.settings(lock_running=locked)
    snapshot = taken(dc1)
    vsphere.write("db1", 0, 0, bytes(SIZE))

    with GuestFiles(dc1, snapshot.machines["db1"]) as files:
        assert files.open().read(b"/etc/motd", most=100) == b"hello"
    assert bool(vsphere.requests("ExportSnapshot")) is locked


# --- changes


def test_what_changed_is_told_in_full_though_each_answer_is_a_part(dc1, vsphere):
    made(dc1, vsphere)
    first = taken(dc1)
    mark = first.machines["db1"].disks[0].mark
    dc1.release(first)
    written = [4 * GRAIN, 100 * GRAIN, 102 * GRAIN, 200 * GRAIN, 310 * GRAIN, 511 * GRAIN]
    for number, offset in enumerate(written):
        vsphere.write("db1", 0, offset, noise(GRAIN, number + 2))
    vsphere.settings(page_size=2)

    second = taken(dc1, [mark])
    state = second.machines["db1"].disks[0]
    assert (state.since, state.remark) == (mark, "")
    changed = dc1.changed(second.machines["db1"], "root", mark)
    assert [(one.start, one.length) for one in changed] == [(offset, GRAIN) for offset in written]


def test_a_vm_that_changed_nothing_says_so(dc1, vsphere):
    made(dc1, vsphere)
    first = taken(dc1)
    mark = first.machines["db1"].disks[0].mark
    dc1.release(first)

    assert dc1.changed(taken(dc1, [mark]).machines["db1"], "root", mark) == []


@pytest.mark.parametrize("how", ["grown", "tracked anew", "another disk", "refused"])
def test_a_mark_that_is_lost_means_a_full_read_and_is_said(dc1, vsphere, client, how):
    made(dc1, vsphere)
    first = taken(dc1)
    mark = first.machines["db1"].disks[0].mark
    dc1.release(first)
    if how == "grown":
        dc1.configure("db1", declare(disks=[{"name": "root", "size": "64MiB"}]), apply=True)
    elif how == "tracked anew":
        client.reconfigure(client.vm("db1"), changeTrackingEnabled=False)
    elif how == "another disk":
        with dc1.create_disk("db1", "root", size=SIZE, format="vmdk") as target:
            target.write(0, b"restored")
        dc1.commit_disks("db1", ["root"])
    else:
        vsphere.fail("QueryChangedDiskAreas", "FileFault", times=2)

    snapshot = taken(dc1, [mark])
    state = snapshot.machines["db1"].disks[0]
    assert state.since == ""
    assert state.remark
    assert dc1.changed(snapshot.machines["db1"], "root", mark) is None
    assert whole(dc1, snapshot)[0] == vsphere.machine("db1").disks[0].sha256


def test_changes_are_tracked_from_the_first_backup_on_also_of_a_vm_that_somebody_else_made(
    dc1, vsphere, client
):
    client.create("db1", (SIZE,))
    declared = declare(disks=[{"name": "disk1", "size": "32MiB"}])
    first = dc1.snapshot("g", {"db1": declared})
    mark = first.machines["db1"].disks[0].mark
    dc1.release(first)
    vsphere.write("db1", 0, GRAIN, b"x")

    second = dc1.take(dc1.prepare("g", {"db1": declared}, owner="shop", marks={"db1": {"disk1": [mark]}}))
    assert mark
    assert [one.start for one in dc1.changed(second.machines["db1"], "disk1", mark)] == [GRAIN]


# --- snapshots


def test_a_guest_with_vmware_tools_is_held_still_and_is_not_where_that_fails(dc1, vsphere):
    made(dc1, vsphere, running=True)
    vsphere.set_guest("db1", tools=True)
    still = taken(dc1)
    dc1.release(still)
    vsphere.fail("CreateSnapshot_Task", "ApplicationQuiesceFault", quiesced=True)
    moving = taken(dc1)

    assert (still.machines["db1"].stilled, moving.machines["db1"].stilled) == (True, False)
    assert "did not let its guest stand still" in moving.machines["db1"].remark
    assert len(vsphere.machine("db1").snapshots) == 1


def test_a_vm_that_was_started_since_it_was_prepared_is_not_captured(dc1, vsphere):
    made(dc1, vsphere)
    prepared = dc1.prepare("g", {"db1": declare()})
    dc1.start("db1")

    with pytest.raises(SourceChangedError, match="db1"):
        dc1.take(prepared)
    assert not vsphere.machine("db1").snapshots


def test_a_snapshot_that_does_not_end_in_time_is_cancelled(dc1, vsphere, monkeypatch):
    made(dc1, vsphere)
    monkeypatch.setattr("vmkeep.hypervisors.vsphere.capture._SNAPSHOT_S", 0.3)
    vsphere.hang("CreateSnapshot_Task")

    with pytest.raises(TemporaryError, match="was cancelled"):
        taken(dc1)
    assert not vsphere.machine("db1").snapshots
    assert vsphere.requests("CancelTask")


def test_when_one_of_a_group_cannot_be_captured_none_stays_captured(dc1, vsphere, client):
    made(dc1, vsphere)
    dc1.configure("db2", declare(), apply=True)
    prepared = dc1.prepare("g", {"db1": declare(), "db2": declare()})
    vsphere.fail("CreateSnapshot_Task", "FileFault", of=client.vm("db2")._moId)

    with pytest.raises(SourceError, match="db2"):
        dc1.take(prepared)
    assert not vsphere.machine("db1").snapshots


def test_what_dead_runs_of_the_same_fleet_left_goes_and_nothing_else(dc1, vsphere, client, monkeypatch):
    made(dc1, vsphere)
    client.snapshot(client.vm("db1"), "before the upgrade")
    with monkeypatch.context() as patch:
        patch.setattr(maker, "me", lambda: DEAD)
        taken(dc1, owner="shop")
        taken(dc1, owner="other")
    dc1.prepare("g", {"db1": declare()}, owner="shop")

    names = [one.name for one in vsphere.machine("db1").snapshots]
    assert [re.sub("-[0-9T]+Z-.*", "", one) for one in names] == ["before the upgrade", "vmkeep-other"]


def test_disks_that_are_left_after_a_snapshot_are_consolidated(dc1, vsphere):
    made(dc1, vsphere)
    snapshot = taken(dc1)
    vsphere.keep_deltas()
    dc1.release(snapshot)

    assert vsphere.machine("db1").disks[0].links == 1


def test_a_disk_that_snapshots_leave_out_is_refused(dc1, client):
    spec = client.new_disk(4 * MiB, 1, controller=1000)
    spec.device.backing.diskMode = "independent_persistent"
    client.create("db1", (SIZE,))
    client.reconfigure(client.vm("db1"), deviceChange=[spec])

    dc1.prepare("g", {"db1": declare(disks=[{"name": "disk1", "size": "32MiB"}])})
    with pytest.raises(SourceError, match=r"disk2 cannot be saved.*independent_persistent"):
        dc1.prepare("g", {"db1": declare(disks=[{"name": "disk2", "size": "4MiB"}])})


# --- restoring


def restored(hypervisor, content, name="db1"):
    with hypervisor.create_disk(name, "root", size=SIZE, format="vmdk") as target:
        target.write(3 * MiB, content)
        target.flush()
    hypervisor.commit_disks(name, ["root"])


def test_a_restored_disk_is_in_place_and_nothing_else_is_left(dc1, vsphere):
    made(dc1, vsphere)
    before = vsphere.machine("db1").disks[0]
    restored(dc1, noise(MiB, 9))
    after = vsphere.machine("db1").disks[0]

    assert vsphere.read("db1", 0, 3 * MiB, MiB) == noise(MiB, 9)
    assert vsphere.read("db1", 0, MiB, MiB) == bytes(MiB)
    assert list(vsphere.machines()) == ["db1"]
    assert not vsphere.leases()
    gone = before.file.partition("] ")[2]
    assert gone not in vsphere.files("vmfs1") + vsphere.files("vmfs2")
    assert after.file != before.file


@pytest.mark.parametrize("what", ["upload", "in place", "lease"])
def test_a_restore_that_fails_leaves_the_vm_as_it_was_and_nothing_of_its_own(dc1, vsphere, client, what):
    made(dc1, vsphere)
    before = vsphere.machine("db1")
    files = [vsphere.files("vmfs1"), vsphere.files("vmfs2")]
    match what:
        case "upload":
            vsphere.refuse_transfer("POST /nfc", 503)
        case "in place":
            vsphere.fail("ReconfigVM_Task", "FileFault", of=client.vm("db1")._moId)
        case "lease":
            vsphere.fail("ImportVApp", "InsufficientResourcesFault")

    with pytest.raises((SourceError, TemporaryError)):
        restored(dc1, b"new")
    assert vsphere.machine("db1").disks == before.disks
    assert list(vsphere.machines()) == ["db1"]
    assert [vsphere.files("vmfs1"), vsphere.files("vmfs2")] == files


@pytest.fixture
def killed_restore(dc1, vsphere, client, monkeypatch):
    """A restore that died when its disks were nobody's."""
    made(dc1, vsphere)
    with monkeypatch.context() as patch:
        patch.setattr(maker, "me", lambda: DEAD)
        # It dies: nothing of it is cleared away.
        patch.setattr("vmkeep.hypervisors.vsphere.holder.Holders._drop", lambda *_: None)
        vsphere.fail("ReconfigVM_Task", "FileFault", of=client.vm("db1")._moId)
        with pytest.raises(SourceError):
            restored(dc1, b"new")


def sent_in(vsphere):
    files = vsphere.files("vmfs1") + vsphere.files("vmfs2")
    return [one for one in files if "restored" in one and one.endswith("-flat.vmdk")]


@pytest.mark.usefixtures("killed_restore")
def test_what_a_killed_restore_left_is_found_and_goes(dc1, vsphere):
    left = [*dc1.orphans()]
    assert [(one.vm, one.disks, one.gone) for one in left] == [("db1", ("root",), True)]
    assert [one.definition.name for one in dc1.inventory()] == ["db1"]
    assert sent_in(vsphere)

    dc1.discard_disks("db1", ["root"])
    assert list(vsphere.machines()) == ["db1"]
    assert not sent_in(vsphere)


@pytest.mark.usefixtures("killed_restore")
def test_disks_are_not_removed_as_long_as_the_vm_that_may_have_them_cannot_be_read(dc1, vsphere, monkeypatch):
    def unreadable(*_told):
        raise SourceError("VM db1: vSphere does not say what it is: it is disconnected")

    monkeypatch.setattr("vmkeep.hypervisors.vsphere.places.Places.machine", unreadable)

    with pytest.raises(SourceError, match="disconnected"):
        dc1.discard_disks("db1", ["root"])
    assert sent_in(vsphere)


def test_a_vm_with_a_snapshot_of_somebody_is_not_restored_in_place(dc1, vsphere, client):
    made(dc1, vsphere)
    client.snapshot(client.vm("db1"), "before the upgrade")

    with pytest.raises(SourceError, match="before the upgrade"):
        restored(dc1, b"new")
    assert list(vsphere.machines()) == ["db1"]


def test_a_lost_vm_comes_back_as_itself(dc1, vsphere, client):
    made(dc1, vsphere, cpus=2, memory="64MiB", networks=["lan"], firmware="uefi")
    snapshot = taken(dc1)
    definition = snapshot.machines["db1"].definition
    dc1.release(snapshot)
    (before,) = dc1.inventory()
    client.wait(client.vm("db1").Destroy_Task())

    assert not dc1.create("db1", definition, overwrite=False)
    restored(dc1, b"new")
    (after,) = dc1.inventory()
    assert after.definition.model_copy(update={"disks": ()}) == before.definition.model_copy(
        update={"disks": ()}
    )
    assert [disk.name for disk in after.definition.disks] == ["root"]


def test_a_copy_may_lie_in_another_datastore(dc1, vsphere):
    made(dc1, vsphere)
    snapshot = taken(dc1)
    (there,) = {"vmfs1", "vmfs2"} - {vsphere.machine("db1").disks[0].file.partition("]")[0][1:]}

    dc1.create(
        "db2", snapshot.machines["db1"].definition, overwrite=False, elsewhere=Elsewhere(storage=there)
    )
    restored(dc1, b"new", "db2")
    assert vsphere.machine("db2").disks[0].file.startswith(f"[{there}]")


def test_a_vm_of_a_drill_runs_on_the_host_of_its_network_and_a_foreign_disk_keeps_it(dc1, vsphere, client):
    made(dc1, vsphere, networks=["lan"])
    definition = taken(dc1).machines["db1"].definition
    drill = "vmkeep-drill-20260101T010000Z-0123abcd"
    name = "db1-drill-20260101T010000Z-0123abcd"
    dc1.isolate(drill)
    dc1.isolate(drill)
    dc1.create(name, definition, overwrite=False, drill=drill)
    restored(dc1, b"new", name)
    dc1.start(name)
    client.reconfigure(client.vm(name), deviceChange=[client.new_disk(4 * MiB, 3, controller=1000)])

    with pytest.raises(SourceError, match="has a disk now that was not"):
        dc1.remove(name, drill=drill)
    foreign = client.disks(client.vm(name))[1]
    away = vim.vm.device.VirtualDeviceSpec(operation="remove", device=foreign)
    client.reconfigure(client.vm(name), deviceChange=[away])
    dc1.remove(name, drill=drill)
    dc1.end_isolation(drill)
    assert list(vsphere.machines()) == ["db1"]
    with pytest.raises(InputError, match="no network"):
        dc1.require_place(Elsewhere({"lan": drill}))


def test_a_network_that_no_drill_made_stays(dc1):
    with pytest.raises(InputError, match="was not made for a drill"):
        dc1.end_isolation("lan")
    with pytest.raises(InputError, match="was not made for a drill"):
        dc1.isolate("lan")


def test_disks_of_several_vms_are_sent_in_at_the_same_time(dc1, vsphere):
    for name in ("db1", "db2"):
        dc1.configure(name, declare(), apply=True)
    together = threading.Barrier(2, timeout=20)

    class Meeting(Holders):
        def _send(self, *told):
            together.wait()
            super()._send(*told)

    dc1._restore.holders.__class__ = Meeting
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: restored(dc1, name.encode(), name), ["db1", "db2"]))
    assert [vsphere.read(name, 0, 3 * MiB, 3) for name in ("db1", "db2")] == [b"db1", b"db2"]
    assert sorted(vsphere.machines()) == ["db1", "db2"]


# --- configuring


def test_a_vm_that_runs_gets_a_disk_and_room_but_no_processors(dc1, vsphere):
    made(dc1, vsphere, running=True)
    larger = [{"name": "root", "size": "64MiB"}, {"name": "data", "size": "8MiB", "storage": "vmfs2"}]

    dc1.configure("db1", declare(disks=larger), apply=True)
    assert [disk.size for disk in vsphere.machine("db1").disks] == [64 * MiB, 8 * MiB]
    with pytest.raises(SourceChangedError, match="power it off to change cpus"):
        dc1.configure("db1", declare(cpus=2, disks=larger), apply=True)


def test_a_vm_is_made_on_a_host_that_it_may_be_on(dc1, client):
    dc1.configure("db1", declare(placement={"hosts": ["DC0_C0_H2"]}), apply=True)

    assert client.properties(client.vm("db1"), "runtime.host")["runtime.host"].name == "DC0_C0_H2"
    with pytest.raises(InputError, match="nohost"):
        dc1.configure("db2", declare(placement={"hosts": ["nohost"]}), apply=True)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"placement": {"near": ["db2"]}}, "placement.near"),
        ({"disks": [{"name": "root", "size": "4MiB", "format": "qcow2"}]}, "format qcow2"),
        ({"guest": {"agent": True}, "health": [{"exec": "true"}]}, "health exec"),
        (
            {"components": {"applications": {"web": {"paths": ["/srv"], "pre": ["sync"]}}}},
            "applications.web.pre",
        ),
    ],
)
def test_what_it_does_not_do_is_said_beforehand(dc1, declared, said):
    (told,) = dc1.unsupported("db1", declare(**declared))

    assert said in told


def test_a_guest_by_ssh_is_given_commands(dc1):
    ssh = {"ssh": {"host": "db1.example"}}
    hooks = {"applications": {"web": {"paths": ["/srv"], "pre": ["sync"]}}}

    assert dc1.unsupported("db1", declare(guest=ssh, health=[{"exec": "true"}], components=hooks)) == []


def test_a_network_is_added_to_a_vm_that_runs_and_never_taken_away(dc1, vsphere):
    made(dc1, vsphere, running=True, networks=["lan"])

    dc1.configure("db1", declare(networks=["lan", "dmz"]), apply=True)
    (found,) = dc1.inventory()
    assert [card.network for card in found.definition.networks] == ["lan", "dmz"]
    with pytest.raises(SourceChangedError, match="networks"):
        dc1.configure("db1", declare(networks=["dmz"]), apply=True)


def test_an_iso_is_found_by_its_name_or_named_in_full(dc1, vsphere):
    folder = vsphere.datastore("vmfs2") / "iso"
    folder.mkdir()
    (folder / "debian-12.iso").write_bytes(b"iso")
    dc1.configure("db1", declare(iso="debian-12.iso"), apply=True)
    (found,) = dc1.inventory()

    assert found.definition.iso == "[vmfs2] iso/debian-12.iso"
    for same in ("debian-12.iso", "iso/debian-12.iso", "[vmfs2] iso/debian-12.iso"):
        assert not dc1.configure("db1", declare(iso=same), apply=True)
    for wrong in ("12.iso", "debian-13.iso", "[vmfs1] iso/debian-12.iso", "[vmfs9] debian-12.iso"):
        with pytest.raises(InputError, match="none of vmfs1, vmfs2"):
            dc1.configure("db2", declare(iso=wrong), apply=False)


def test_an_iso_that_is_gone_does_not_keep_a_vm_from_coming_back(dc1, vsphere):
    (vsphere.datastore("vmfs1") / "debian-12.iso").write_bytes(b"iso")
    made(dc1, vsphere, iso="debian-12.iso")
    definition = taken(dc1).machines["db1"].definition
    (vsphere.datastore("vmfs1") / "debian-12.iso").unlink()

    changes = dc1.create("db2", definition, overwrite=False)
    assert [(one.what, one.actual) for one in changes if one.what == "iso"] == [
        ("iso", "[vmfs1] debian-12.iso")
    ]
    assert dc1.exists("db2")


def test_a_network_or_storage_that_is_not_there_is_named_with_those_that_are(dc1):
    with pytest.raises(InputError, match=r"no network wan .*dmz"):
        dc1.configure("db1", declare(networks=["wan"]), apply=True)
    nowhere = [{"name": "root", "size": "4MiB", "storage": "nowhere"}]
    with pytest.raises(InputError, match="nowhere"):
        dc1.configure("db1", declare(disks=nowhere), apply=True)
    assert not dc1.exists("db1")


def test_a_vm_that_somebody_else_made_gets_no_disk_by_mistake(dc1, client):
    client.create("db1", (SIZE,))

    with pytest.raises(InputError, match="disk1"):
        dc1.configure("db1", declare(), apply=True)
    assert not dc1.configure("db1", declare(disks=[{"name": "disk1", "size": "32MiB"}]), apply=True)


# --- the connection


def config(vsphere, **changes):
    entry = {"driver": "vsphere", "host": vsphere.host, "ca_file": vsphere.ca}
    return Config.model_validate({**entry, "credentials": KeyReference(env="VCENTER"), **changes})


def test_a_fleet_files_hypervisor_is_opened_with_its_login(vsphere, tmp_path, monkeypatch):
    monkeypatch.setenv("VCENTER", f"{vsphere.user}:{vsphere.password}")

    assert open_hypervisor("dc1", config(vsphere), tmp_path).capacity().cpus > 0


def test_a_wrong_password_is_refused_and_never_shown(vsphere, tmp_path, monkeypatch):
    monkeypatch.setenv("VCENTER", f"{vsphere.user}:not the password")

    with pytest.raises(AccessError, match="credentials") as refused:
        open_hypervisor("dc1", config(vsphere), tmp_path).inventory()
    assert "not the password" not in str(refused.value)


def test_a_login_without_a_password_is_refused_and_never_shown(vsphere, tmp_path, monkeypatch):
    monkeypatch.setenv("VCENTER", "only a user")

    with pytest.raises(InputError, match="USER:PASSWORD") as refused:
        open_hypervisor("dc1", config(vsphere), tmp_path).inventory()
    assert "only a user" not in str(refused.value)


def test_a_certificate_that_nobody_trusts_is_refused_also_on_this_machine(vsphere, tmp_path, monkeypatch):
    monkeypatch.setenv("VCENTER", f"{vsphere.user}:{vsphere.password}")

    with pytest.raises(AccessError, match="ca_file"):
        open_hypervisor("dc1", config(vsphere, ca_file=None), tmp_path).inventory()
    careless = config(vsphere, ca_file=None, verify_tls=False)
    assert open_hypervisor("dc1", careless, tmp_path).inventory() == []


def test_a_server_that_is_away_is_asked_again_later(vsphere, tmp_path, monkeypatch):
    monkeypatch.setenv("VCENTER", f"{vsphere.user}:{vsphere.password}")

    with pytest.raises(TemporaryError, match="no answer"):
        open_hypervisor("dc1", config(vsphere, host="127.0.0.1:1"), tmp_path).inventory()


def test_a_session_that_ended_is_begun_again(dc1, vsphere):
    made(dc1, vsphere)
    snapshot = taken(dc1)
    vsphere.expire_sessions()

    assert [one.definition.name for one in dc1.inventory()] == ["db1"]
    vsphere.expire_sessions()
    assert whole(dc1, snapshot)[0] == vsphere.machine("db1").disks[0].sha256
    vsphere.expire_sessions()
    dc1.release(snapshot)
    assert not vsphere.machine("db1").snapshots


def test_a_read_whose_connection_drops_is_repeated_and_a_change_is_not(dc1, vsphere):
    made(dc1, vsphere)
    vsphere.drop("RetrievePropertiesEx", times=1)
    assert [one.definition.name for one in dc1.inventory()] == ["db1"]

    vsphere.drop("CreateSnapshot_Task", after=True)
    with pytest.raises(TemporaryError, match="db1"):
        taken(dc1)
    assert len(vsphere.requests("CreateSnapshot_Task")) == 1
    assert not vsphere.machine("db1").snapshots


def test_a_session_that_ended_amid_a_read_is_begun_again(dc1, vsphere):
    made(dc1, vsphere)
    snapshot = taken(dc1)
    with dc1.open_disk(snapshot.machines["db1"], "root") as source:
        vsphere.expire_sessions()

        assert read(source, MiB, 100) == noise(MiB)[:100]
