"""The vSphere server of the tests does what drivers count on."""

import hashlib
import http.client
import random
import ssl
import subprocess
import threading
import time

import pytest
from pyVim.connect import SmartConnect
from pyVmomi import vim, vmodl

from vmkeep.testing import vsphere_client
from vmkeep.units import KiB, MiB

pytestmark = pytest.mark.integration

GRAIN = 64 * KiB


@pytest.fixture
def client(vsphere):
    client = vsphere_client.Client(vsphere)
    yield client
    client.close()


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def raw(image, folder, name="disk"):
    """The bytes of a stream-optimized image."""
    (folder / f"{name}.vmdk").write_bytes(image)
    command = ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", f"{name}.vmdk", f"{name}.raw"]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / f"{name}.raw").read_bytes()


def stream(content, folder):
    """A stream-optimized image with these bytes."""
    (folder / "in.raw").write_bytes(content)
    options = ["-O", "vmdk", "-o", "subformat=streamOptimized,adapter_type=lsilogic"]
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", *options, "in.raw", "in.vmdk"], cwd=folder, check=True
    )
    return (folder / "in.vmdk").read_bytes()


def download(client, lease):
    """All disks of a lease, which is completed."""
    info = client.ready(lease)
    images = []
    for url in info.deviceUrl:
        if url.disk:
            status, image = client.exchange("GET", url.url)
            assert status == 200
            images.append(image)
    lease.HttpNfcLeaseProgress(100)
    lease.HttpNfcLeaseComplete()
    return images


def backing_chain(disk):
    link, files = disk.backing, []
    while link is not None:
        files.append(link.fileName.partition("/")[2])
        link = link.parent
    return files


# --- the inventory


def test_a_fresh_server_has_hosts_datastores_and_networks_and_no_vms(vsphere, client):
    hosts = [(host.name, sorted(n.name for n in host.network)) for host in client.cluster.host]

    assert sorted(hosts) == [(f"DC0_C0_H{n}", ["VM Network", "dmz", "lan"]) for n in range(3)]
    assert [store.name for store in client.datacenter.datastore] == ["vmfs1", "vmfs2"]
    assert vsphere.machines() == {}


def test_no_one_gets_in_with_a_wrong_password_or_another_certificate(vsphere):
    host, port = vsphere.host.split(":")
    where = {"host": host, "port": int(port), "user": vsphere.user}

    with pytest.raises(vim.fault.InvalidLogin):
        SmartConnect(**where, pwd="no", sslContext=vsphere.tls)
    with pytest.raises(ssl.SSLCertVerificationError):
        SmartConnect(**where, pwd=vsphere.password, sslContext=ssl.create_default_context())


def test_a_vm_is_made_as_it_was_specified(vsphere, client):
    spec = client.spec("db1", [4 * MiB, 8 * MiB], network="dmz")
    spec.annotation = "a note"
    spec.extraConfig = [vim.option.OptionValue(key="vmkeep.owner", value="shop")]
    spec.firmware = "efi"

    vm = client.wait(client.datacenter.vmFolder.CreateVM_Task(config=spec, pool=client.cluster.resourcePool))

    has = client.properties(
        vm, "name", "config.hardware.numCPU", "config.hardware.memoryMB", "config.annotation",
        "config.extraConfig", "config.firmware", "config.files.vmPathName", "network", "runtime.powerState",
    )  # fmt: skip
    assert has["name"] == "db1"
    assert (has["config.hardware.numCPU"], has["config.hardware.memoryMB"]) == (2, 512)
    assert (has["config.annotation"], has["config.firmware"]) == ("a note", "efi")
    assert ("vmkeep.owner", "shop") in [(option.key, option.value) for option in has["config.extraConfig"]]
    assert has["config.files.vmPathName"] == "[vmfs1] db1/db1.vmx"
    assert [network.name for network in has["network"]] == ["dmz"]
    assert has["runtime.powerState"] == "poweredOff"
    assert [disk.size for disk in vsphere.machine("db1").disks] == [4 * MiB, 8 * MiB]
    assert [disk.file for disk in vsphere.machine("db1").disks] == [
        "[vmfs1] db1/db1.vmdk",
        "[vmfs1] db1/db1_1.vmdk",
    ]


def test_what_cannot_be_made_is_a_fault_and_leaves_nothing(vsphere, client):
    client.create("db1")

    with pytest.raises(vim.fault.DuplicateName):
        client.create("db1")
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        client.create("app1", network="nowhere")
    with pytest.raises(vim.fault.InvalidDatastore):
        client.create("app1", datastore="nowhere")
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        client.create("app1", [0])

    assert list(vsphere.machines()) == ["db1"]
    assert not any(file.startswith("app1") for file in vsphere.files())


def test_unset_properties_are_absent(client):
    vm = client.create("db1")

    assert "snapshot" not in client.properties(vm, "snapshot", "name")
    assert vm.snapshot is None
    assert vm.runtime.powerState == "poweredOff"


def test_whole_objects_can_be_read(client):
    vm = client.create("db1")
    snapshot = client.snapshot(vm)
    task = snapshot.RemoveSnapshot_Task(removeChildren=False)
    made = client.content.fileManager.MoveDatastoreFile_Task(
        "[vmfs1] db1/vmware.log", client.datacenter, "[vmfs1] db1/old.log", client.datacenter
    )

    assert task.info.entity == vm
    assert made.info.entity is None
    assert vm.summary.quickStats.guestHeartbeatStatus == "gray"
    assert vm.storage.perDatastoreUsage
    assert {host.summary.runtime.connectionState for host in client.cluster.host} == {"connected"}


# --- snapshots


def test_a_snapshot_keeps_what_the_disk_held_and_the_vm_goes_on_with_a_delta(vsphere, client):
    vm = client.create("db1")
    vsphere.write("db1", 0, 0, b"before")

    snapshot = client.snapshot(vm, "one")
    vsphere.write("db1", 0, 0, b"after!")

    assert backing_chain(client.disks(snapshot)[0]) == ["db1.vmdk"]
    assert backing_chain(client.disks(vm)[0]) == ["db1-000001.vmdk", "db1.vmdk"]
    assert (vsphere.datastore() / "db1" / "db1-flat.vmdk").read_bytes()[:6] == b"before"
    assert vsphere.read("db1", 0, 0, 6) == b"after!"


def test_removing_a_snapshot_folds_its_delta_into_what_is_below(vsphere, client):
    vm, other = client.create("db1"), client.create("app1")
    snapshot, kept = client.snapshot(vm), client.snapshot(other)
    vsphere.write("db1", 0, MiB, b"after!")

    client.remove(snapshot)

    assert backing_chain(client.disks(vm)[0]) == ["db1.vmdk"]
    assert (vsphere.datastore() / "db1" / "db1-flat.vmdk").read_bytes()[MiB : MiB + 6] == b"after!"
    assert [file for file in vsphere.files() if "0000" in file] == [
        "app1/app1-000001-delta.vmdk",
        "app1/app1-000001.vmdk",
    ]
    assert vsphere.machine("app1").snapshots[0].id == kept._moId


def test_a_snapshot_amid_others_goes_and_the_others_keep_what_they_have(vsphere, client, tmp_path):
    vm = client.create("db1")
    snapshots = []
    for number in range(3):
        vsphere.write("db1", 0, 0, b"state %d" % number)
        snapshots.append(client.snapshot(vm, str(number)))
    vsphere.write("db1", 0, 0, b"state 3")

    client.remove(snapshots[1])

    assert vsphere.read("db1", 0, 0, 7) == b"state 3"
    for number in (0, 2):
        [image] = download(client, snapshots[number].ExportSnapshot())
        assert raw(image, tmp_path)[:7] == b"state %d" % number
    assert len(backing_chain(client.disks(vm)[0])) == 3
    assert [one.name for one in vsphere.machine("db1").snapshots] == ["0", "2"]

    client.wait(vm.RemoveAllSnapshots_Task())

    assert backing_chain(client.disks(vm)[0]) == ["db1.vmdk"]
    assert vsphere.read("db1", 0, 0, 7) == b"state 3"


def test_reverting_brings_a_vm_back_and_forgets_changes(vsphere, client):
    vm = client.create("db1")
    vsphere.write("db1", 0, 0, b"before")
    snapshot = client.snapshot(vm)
    change_id = client.disks(snapshot)[0].backing.changeId
    vsphere.write("db1", 0, 0, b"after!")

    client.wait(snapshot.RevertToSnapshot_Task())

    assert vsphere.read("db1", 0, 0, 6) == b"before"
    later = client.snapshot(vm)
    with pytest.raises(vim.fault.FileFault):
        client.changed(vm, later, change_id)


def test_a_removal_that_fails_leaves_the_vm_in_need_of_consolidation(vsphere, client):
    vm = client.create("db1")
    snapshot = client.snapshot(vm)
    vsphere.write("db1", 0, 0, b"after!")
    vsphere.keep_deltas()

    with pytest.raises(vim.fault.FileLocked):
        client.remove(snapshot)
    assert vm.runtime.consolidationNeeded
    assert vsphere.machine("db1").disks[0].links == 2
    client.wait(vm.ConsolidateVMDisks_Task())

    assert not vm.runtime.consolidationNeeded
    assert vsphere.machine("db1").disks[0].links == 1
    assert vsphere.read("db1", 0, 0, 6) == b"after!"


def test_quiescing_needs_a_running_guest_with_tools_and_can_fail(vsphere, client):
    vm = client.create("db1")
    vsphere.set_guest("db1", tools=True)
    client.snapshot(vm, "off", quiesce=True)
    client.wait(vm.PowerOnVM_Task())
    client.snapshot(vm, "on", quiesce=True)
    vsphere.fail("CreateSnapshot_Task", "ApplicationQuiesceFault", quiesced=True)

    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        client.snapshot(vm, "fails", quiesce=True)
    client.snapshot(vm, "plain")

    assert [(one.name, one.quiesced) for one in vsphere.machine("db1").snapshots] == [
        ("off", False), ("on", True), ("plain", False),
    ]  # fmt: skip


def test_a_task_that_hangs_can_be_cancelled_and_has_done_nothing(vsphere, client):
    vm = client.create("db1")
    vsphere.hang("CreateSnapshot_Task")

    task = vm.CreateSnapshot_Task(name="one", description="", memory=False, quiesce=False)
    assert client.properties(task, "info.state")["info.state"] == "running"
    task.CancelTask()

    with pytest.raises(vmodl.fault.RequestCanceled):
        client.wait(task)
    assert vsphere.machine("db1").snapshots == ()


def test_a_task_that_is_late_does_its_work_after_all(vsphere, client):
    vm = client.create("db1")
    vsphere.hang("CreateSnapshot_Task", 0.1)

    task = vm.CreateSnapshot_Task(name="late", description="", memory=False, quiesce=False)

    assert client.properties(task, "info.state")["info.state"] == "running"
    assert client.wait(task)._moId == vsphere.machine("db1").snapshots[0].id


# --- changed areas


def test_changed_areas_are_exactly_the_grains_that_were_written(vsphere, client):
    vm = client.create("db1", [64 * MiB])
    vsphere.write("db1", 0, 3 * GRAIN, noise(2 * GRAIN))
    full = client.snapshot(vm)
    allocated = client.changed(vm, full, "*")
    since = client.disks(full)[0].backing.changeId
    client.remove(full)
    vsphere.write("db1", 0, 4 * GRAIN + 5, b"x")
    vsphere.write("db1", 0, 900 * GRAIN - 1, b"yz")

    later = client.snapshot(vm)

    assert allocated == [(3 * GRAIN, 2 * GRAIN)]
    assert client.changed(vm, later, since) == [(4 * GRAIN, GRAIN), (899 * GRAIN, 2 * GRAIN)]
    assert client.changed(vm, later, client.disks(later)[0].backing.changeId) == []


def test_changed_areas_come_in_pages(vsphere, client):
    vm = client.create("db1", [64 * MiB])
    for number in range(0, 14, 2):
        vsphere.write("db1", 0, number * GRAIN, b"x")
    vsphere.settings(page_size=3)
    snapshot = client.snapshot(vm)

    first = vm.QueryChangedDiskAreas(snapshot, client.disks(snapshot)[0].key, 0, "*")

    assert [area.start // GRAIN for area in first.changedArea] == [0, 2, 4]
    assert first.length == 6 * GRAIN
    assert [start // GRAIN for start, _ in client.changed(vm, snapshot, "*")] == [0, 2, 4, 6, 8, 10, 12]


def test_change_ids_are_of_their_own_disk_and_end_with_tracking(client):
    vm = client.create("db1", [4 * MiB, 4 * MiB])
    snapshot = client.snapshot(vm)
    first, second = (disk.backing.changeId for disk in client.disks(snapshot))
    with pytest.raises(vim.fault.FileFault):
        client.changed(vm, snapshot, second, disk=0)
    with pytest.raises(vim.fault.FileFault):
        client.changed(vm, snapshot, "52 de ad be ef 00 00 00-00 00 00 00 00 00 00 00/1")
    client.remove(snapshot)

    client.reconfigure(vm, changeTrackingEnabled=False)
    untracked = client.snapshot(vm)
    with pytest.raises(vim.fault.FileFault):
        client.changed(vm, untracked, "*")
    assert client.disks(untracked)[0].backing.changeId is None
    client.remove(untracked)
    client.reconfigure(vm, changeTrackingEnabled=True)
    anew = client.snapshot(vm)

    assert client.disks(anew)[0].backing.changeId.endswith("/1")
    with pytest.raises(vim.fault.FileFault):
        client.changed(vm, anew, first)
    assert client.changed(vm, anew, "*") == []


# --- leases


def test_an_export_of_a_snapshot_has_the_bytes_as_of_then(vsphere, client, tmp_path):
    vm = client.create("db1", [4 * MiB, 2 * MiB])
    before = noise(MiB)
    vsphere.write("db1", 0, MiB, before)
    vsphere.write("db1", 1, 0, b"the second")
    client.wait(vm.PowerOnVM_Task())
    snapshot = client.snapshot(vm)
    vsphere.write("db1", 0, 0, noise(4 * MiB, 2))

    first, second = download(client, snapshot.ExportSnapshot())

    assert raw(first, tmp_path, "first") == bytes(MiB) + before + bytes(2 * MiB)
    assert raw(second, tmp_path, "second") == b"the second".ljust(2 * MiB, b"\0")
    assert vsphere.leases() == []
    assert [one.sent for one in vsphere.requests("GET /nfc")] == [len(first), len(second)]


def test_a_lease_names_its_disks_by_controller_and_unit_and_says_what_it_sent(client):
    vm = client.create("db1", [4 * MiB, 2 * MiB])

    lease = vm.ExportVm()
    info = client.ready(lease)
    status, image = client.exchange("GET", info.deviceUrl[1].url)
    [entry] = lease.HttpNfcLeaseGetManifest()

    urls = [(url.key, url.importKey, url.disk) for url in info.deviceUrl]
    assert urls == [
        (f"/{vm._moId}/ParaVirtualSCSIController0:0", "/db1/ParaVirtualSCSIController0:0", True),
        (f"/{vm._moId}/ParaVirtualSCSIController0:1", "/db1/ParaVirtualSCSIController0:1", True),
        (f"/{vm._moId}/nvram", "/db1/nvram", False),
    ]
    assert all(url.url.startswith("https://*/") for url in info.deviceUrl)
    pem = ssl.get_server_certificate((client.host, client.port))
    thumbprint = hashlib.sha1(ssl.PEM_cert_to_DER_cert(pem), usedforsecurity=False).hexdigest().upper()
    assert info.deviceUrl[0].sslThumbprint.replace(":", "") == thumbprint
    assert status == 200
    assert (entry.key, entry.size) == (info.deviceUrl[1].key, len(image))
    assert entry.sha1 == hashlib.sha1(image, usedforsecurity=False).hexdigest()
    lease.HttpNfcLeaseAbort(None)


def test_a_running_vm_is_not_exported_itself(client):
    vm = client.create("db1")
    client.wait(vm.PowerOnVM_Task())

    with pytest.raises(vim.fault.InvalidPowerState):
        vm.ExportVm()


def test_a_lease_ends_when_nothing_is_heard_of_it(vsphere, client):
    vm = client.create("db1")
    vsphere.settings(lease_timeout=1)
    heard, silent = vm.ExportVm(), vm.ExportVm()
    client.ready(silent)

    for _ in range(6):
        time.sleep(0.25)
        heard.HttpNfcLeaseProgress(1)

    assert client.properties(silent, "state")["state"] == "error"
    assert client.exchange("GET", client.properties(silent, "info")["info"].deviceUrl[0].url)[0] == 404
    assert len(vsphere.leases()) == 1
    heard.HttpNfcLeaseComplete()


def test_an_import_puts_every_byte_into_the_right_disk(vsphere, client, tmp_path):
    contents = [noise(4 * MiB, 1), noise(MiB, 2) + bytes(MiB)]
    spec = vim.vm.VmImportSpec(configSpec=client.spec("db1", [4 * MiB, 2 * MiB]))
    spec.configSpec.extraConfig = [vim.option.OptionValue(key="vmkeep.owner", value="shop")]

    lease = client.cluster.resourcePool.ImportVApp(spec, client.datacenter.vmFolder, client.cluster.host[0])
    info = client.ready(lease)
    # Another one is made meanwhile.
    client.create("app1", [4 * MiB, 2 * MiB])
    for url, content in reversed(list(zip(info.deviceUrl, contents, strict=True))):
        assert client.exchange("POST", url.url, stream(content, tmp_path))[0] == 201
    lease.HttpNfcLeaseComplete()

    disks = vsphere.machine("db1").disks
    assert [disk.sha256 for disk in disks] == [hashlib.sha256(content).hexdigest() for content in contents]
    assert info.entity == client.vm("db1")
    assert ("vmkeep.owner", "shop") in [
        (option.key, option.value) for option in client.vm("db1").config.extraConfig
    ]


def test_an_import_that_is_not_completed_leaves_no_vm(vsphere, client):
    spec = vim.vm.VmImportSpec(configSpec=client.spec("db1"))
    lease = client.cluster.resourcePool.ImportVApp(spec, client.datacenter.vmFolder)
    client.ready(lease)

    with pytest.raises(vim.fault.DuplicateName):
        client.cluster.resourcePool.ImportVApp(spec, client.datacenter.vmFolder)
    lease.HttpNfcLeaseAbort(None)

    assert vsphere.machines() == {}
    assert vsphere.files() == []


# --- files


def test_files_need_a_login_and_ranges_are_exact(vsphere, client):
    client.create("db1")
    vsphere.write("db1", 0, MiB, b"0123456789")
    file = "[vmfs1] db1/db1-flat.vmdk"

    status, content = client.folder("GET", file, headers={"Range": f"bytes={MiB + 2}-{MiB + 4}"})
    connection = http.client.HTTPSConnection(client.host, client.port, context=client.tls)
    connection.request("GET", "/folder/db1/db1-flat.vmdk?dcPath=DC0&dsName=vmfs1")
    refused = connection.getresponse().status
    connection.close()

    assert (status, content) == (206, b"234")
    assert refused == 401
    assert client.folder("PUT", "[vmfs2] iso/a b.iso", b"iso")[0] == 201
    assert vsphere.files("vmfs2") == ["iso/a b.iso"]
    assert client.folder("DELETE", "[vmfs2] iso/a b.iso")[0] == 204
    assert client.folder("GET", "[vmfs2] iso/a b.iso")[0] == 404


def test_extents_of_running_vms_can_be_locked(vsphere, client):
    vm = client.create("db1")
    client.wait(vm.PowerOnVM_Task())
    client.snapshot(vm)
    file = "[vmfs1] db1/db1-flat.vmdk"

    assert client.folder("HEAD", file)[0] == 200
    vsphere.settings(lock_running=True)
    assert client.folder("HEAD", file)[0] == 500
    assert client.folder("HEAD", "[vmfs1] db1/db1.vmdk")[0] == 200


def test_a_delta_cannot_be_read_as_an_image(client):
    vm = client.create("db1")
    client.snapshot(vm)

    assert client.folder("GET", "[vmfs1] db1/db1-000001-delta.vmdk") == (200, b"COWD")
    assert client.folder("GET", "[vmfs1] db1/db1-000001-flat.vmdk")[0] == 404


# --- changing machines


def test_disks_are_replaced_in_one_change_and_their_files_stay(vsphere, client):
    vm, donor = client.create("db1"), client.create("donor", [8 * MiB])
    vsphere.write("donor", 0, 0, b"the new one")
    [old], [new] = client.disks(vm), client.disks(donor)
    client.reconfigure(donor, deviceChange=[change("remove", new)])
    new.controllerKey, new.key = old.controllerKey, -1

    client.reconfigure(vm, deviceChange=[change("remove", old), change("add", new)])

    [disk] = vsphere.machine("db1").disks
    assert (disk.file, disk.size) == ("[vmfs1] donor/donor.vmdk", 8 * MiB)
    assert vsphere.read("db1", 0, 0, 11) == b"the new one"
    assert "db1/db1-flat.vmdk" in vsphere.files()
    client.wait(donor.Destroy_Task())
    assert "donor/donor.vmdk" in vsphere.files()
    client.wait(vm.Destroy_Task())
    assert vsphere.files() == ["db1/db1-flat.vmdk", "db1/db1.vmdk"]


def change(operation, device):
    return vim.vm.device.VirtualDeviceSpec(operation=operation, device=device)


def test_a_disk_grows_and_never_shrinks(vsphere, client):
    vm = client.create("db1")
    [disk] = client.disks(vm)
    snapshot = client.snapshot(vm)
    change_id = client.disks(snapshot)[0].backing.changeId
    client.remove(snapshot)

    disk.capacityInKB, disk.capacityInBytes = 8 * 1024, 8 * MiB
    client.reconfigure(vm, deviceChange=[change("edit", disk)])
    disk.capacityInKB, disk.capacityInBytes = 4 * 1024, 4 * MiB
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        client.reconfigure(vm, deviceChange=[change("edit", disk)])

    assert vsphere.machine("db1").disks[0].size == 8 * MiB
    assert vsphere.machine("db1").disks[0].raw.stat().st_size == 8 * MiB
    with pytest.raises(vim.fault.FileFault):
        client.changed(vm, client.snapshot(vm), change_id)


def test_cards_options_and_size_are_changed(client):
    vm = client.create("db1")
    kinds = vim.vm.device
    [card] = [one for one in vm.config.hardware.device if isinstance(one, kinds.VirtualEthernetCard)]
    address, card.backing = card.macAddress, kinds.VirtualEthernetCard.NetworkBackingInfo(deviceName="dmz")
    second = kinds.VirtualVmxnet3(
        key=-1, backing=kinds.VirtualEthernetCard.NetworkBackingInfo(deviceName="lan"),
        addressType="manual", macAddress="00:50:56:00:00:01",
    )  # fmt: skip
    options = [vim.option.OptionValue(key="a", value="1"), vim.option.OptionValue(key="b", value="2")]

    client.reconfigure(
        vm,
        numCPUs=4,
        memoryMB=1024,
        extraConfig=options,
        deviceChange=[change("add", second), change("edit", card)],
    )
    client.reconfigure(vm, extraConfig=[vim.option.OptionValue(key="a", value="")])

    cards = [one for one in vm.config.hardware.device if isinstance(one, kinds.VirtualEthernetCard)]
    assert [(one.backing.deviceName, one.macAddress) for one in cards] == [
        ("dmz", address), ("lan", "00:50:56:00:00:01"),
    ]  # fmt: skip
    assert (vm.config.hardware.numCPU, vm.config.hardware.memoryMB) == (4, 1024)
    assert {option.key for option in vm.config.extraConfig} >= {"b"}
    assert "a" not in {option.key for option in vm.config.extraConfig}
    client.reconfigure(vm, deviceChange=[change("remove", kinds.VirtualVmxnet3(key=cards[0].key))])
    assert [network.name for network in vm.network] == ["lan"]


def test_a_vm_comes_back_with_all_it_has_after_it_was_unregistered(vsphere, client):
    vm = client.create("db1", [4 * MiB, 2 * MiB])
    vsphere.write("db1", 0, 0, b"kept")
    client.snapshot(vm, "one")
    disks = [disk.file for disk in vsphere.machine("db1").disks]

    vm.UnregisterVM()
    assert vsphere.machines() == {}
    back = client.wait(
        client.datacenter.vmFolder.RegisterVM_Task(
            path="[vmfs1] db1/db1.vmx", name="db2", asTemplate=False, pool=client.cluster.resourcePool
        )
    )

    assert [disk.file for disk in vsphere.machine("db2").disks] == disks
    assert back.config.hardware.numCPU == 2
    assert [one.name for one in vsphere.machine("db2").snapshots] == ["one"]
    assert vsphere.read("db2", 0, 0, 4) == b"kept"


def test_disks_are_made_copied_moved_extended_and_deleted_by_their_files(vsphere, client):
    manager, where = client.content.virtualDiskManager, client.datacenter
    kind = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
        capacityKb=1024, diskType="thin", adapterType="lsiLogic"
    )
    client.wait(manager.CreateVirtualDisk_Task("[vmfs2] a.vmdk", where, kind))
    (vsphere.datastore("vmfs2") / "a-flat.vmdk").write_bytes(noise(MiB))

    client.wait(manager.CopyVirtualDisk_Task("[vmfs2] a.vmdk", where, "[vmfs2] b.vmdk", where))
    client.wait(manager.MoveVirtualDisk_Task("[vmfs2] a.vmdk", where, "[vmfs2] c.vmdk", where))
    client.wait(manager.ExtendVirtualDisk_Task("[vmfs2] c.vmdk", where, 2048))

    assert vsphere.files("vmfs2") == ["b-flat.vmdk", "b.vmdk", "c-flat.vmdk", "c.vmdk"]
    assert (vsphere.datastore("vmfs2") / "b-flat.vmdk").read_bytes() == noise(MiB)
    assert (vsphere.datastore("vmfs2") / "c-flat.vmdk").read_bytes() == noise(MiB) + bytes(MiB)
    client.wait(manager.DeleteVirtualDisk_Task("[vmfs2] b.vmdk", where))
    client.wait(manager.DeleteVirtualDisk_Task("[vmfs2] c.vmdk", where))
    assert vsphere.files("vmfs2") == []
    with pytest.raises(vim.fault.FileNotFound):
        client.wait(manager.DeleteVirtualDisk_Task("[vmfs2] c.vmdk", where))


def test_a_network_without_uplink_is_made_used_and_removed(client):
    host = client.cluster.host[0]
    system = client.properties(host, "configManager.networkSystem")["configManager.networkSystem"]
    group = vim.host.PortGroup.Specification(
        name="drill", vlanId=0, vswitchName="vSwitchDrill", policy=vim.host.NetworkPolicy()
    )

    system.AddVirtualSwitch("vSwitchDrill", vim.host.VirtualSwitch.Specification(numPorts=8))
    system.AddPortGroup(group)
    with pytest.raises(vim.fault.AlreadyExists):
        system.AddPortGroup(group)
    spec = client.spec("db1", network="drill")
    vm = client.wait(client.datacenter.vmFolder.CreateVM_Task(spec, client.cluster.resourcePool, host))

    [network] = [one for one in client.datacenter.network if one.name == "drill"]
    assert [one.name for one in network.host] == [host.name]
    assert list(network.vm) == [vm]
    with pytest.raises(vim.fault.ResourceInUse):
        system.RemovePortGroup("drill")
    client.wait(vm.Destroy_Task())
    system.RemovePortGroup("drill")
    system.RemoveVirtualSwitch("vSwitchDrill")
    assert "drill" not in [one.name for one in client.datacenter.network]
    assert "drill" not in [one.name for one in host.network]


def test_a_guest_reports_only_while_it_runs(vsphere, client):
    vm = client.create("db1")
    vsphere.set_guest("db1", tools=True, heartbeat="yellow", address="192.0.2.7", hostname="db1.example")
    asked = ("guest.toolsRunningStatus", "guestHeartbeatStatus", "guest.ipAddress")

    before = client.properties(vm, *asked)
    client.wait(vm.PowerOnVM_Task())
    on = client.properties(vm, *asked)
    client.wait(vm.PowerOffVM_Task())

    assert before["guest.toolsRunningStatus"] == "guestToolsNotRunning"
    assert on == dict(zip(asked, ("guestToolsRunning", "yellow", "192.0.2.7"), strict=True))
    assert "guest.ipAddress" not in client.properties(vm, *asked)


# --- what goes wrong


def test_a_session_that_expired_must_log_in_again(vsphere, client):
    vm = client.create("db1")
    vsphere.expire_sessions()

    with pytest.raises(vim.fault.NotAuthenticated):
        client.properties(vm, "name")
    assert client.folder("GET", "[vmfs1] db1/db1.vmdk")[0] == 401
    client.content.sessionManager.Login(vsphere.user, vsphere.password)

    assert client.properties(vm, "name")["name"] == "db1"


def test_a_connection_breaks_before_or_after_a_call_was_carried_out(vsphere, client):
    vm = client.create("db1")

    for after, expected in ((False, 0), (True, 1)):
        vsphere.drop("CreateSnapshot_Task", after=after)
        with pytest.raises((http.client.HTTPException, OSError)):
            vm.CreateSnapshot_Task(name="one", description="", memory=False, quiesce=False)
        assert len(vsphere.machine("db1").snapshots) == expected


def test_a_transfer_breaks_where_it_is_told_to(vsphere, client):
    vm = client.create("db1")
    vsphere.write("db1", 0, 0, noise(MiB))
    info = client.ready(vm.ExportVm())
    vsphere.break_transfer("GET /nfc", after=100_000)
    vsphere.refuse_transfer("GET /nfc", 503)

    with pytest.raises((http.client.HTTPException, OSError)):
        client.exchange("GET", info.deviceUrl[0].url)
    assert client.exchange("GET", info.deviceUrl[0].url)[0] == 503
    assert client.exchange("GET", info.deviceUrl[0].url)[0] == 200
    assert vsphere.requests("GET /nfc")[0].sent == 100_000
    assert vsphere.faults() == []


def test_tasks_of_many_clients_at_once_are_all_done(vsphere):
    errors = []

    def work(name):
        client = vsphere_client.Client(vsphere)
        try:
            vm = client.create(name)
            for number in range(4):
                vsphere.write(name, 0, number * GRAIN, b"x")
                snapshot = client.snapshot(vm)
                assert client.changed(vm, snapshot, "*") == [(0, (number + 1) * GRAIN)]
                client.remove(snapshot)
        except Exception as error:  # noqa: BLE001  (told by the test)
            errors.append(error)
        finally:
            client.close()

    threads = [threading.Thread(target=work, args=(f"vm{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert all(one.disks[0].links == 1 and not one.snapshots for one in vsphere.machines().values())


def test_the_server_ends_with_whoever_started_it(vsphere):
    vsphere.process.stdin.close()

    assert vsphere.process.wait(timeout=5) == 0
