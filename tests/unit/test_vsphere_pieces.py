"""The parts of the driver vsphere that need no server."""

import itertools
import ssl
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim, vmodl

from vmkeep.disks.device import Extent
from vmkeep.errors import (
    AccessError,
    InputError,
    NotFoundError,
    SourceChangedError,
    SourceError,
    TemporaryError,
    UnsupportedError,
)
from vmkeep.hypervisors.vsphere import captured, changes, transfer
from vmkeep.hypervisors.vsphere.build import Changes
from vmkeep.hypervisors.vsphere.connection import Address, address_of
from vmkeep.hypervisors.vsphere.faults import meaning
from vmkeep.hypervisors.vsphere.lease import Lease
from vmkeep.hypervisors.vsphere.machine import read

SIZE = 100


@given(st.lists(st.builds(Extent, st.integers(-10, 120), st.integers(0, 40))))
def test_merged_areas_are_the_same_bytes_in_order_and_inside_the_disk(areas):
    merged = changes.merged(areas, SIZE)

    bytes_of = {byte for one in areas for byte in range(max(0, one.start), min(one.end, SIZE))}
    assert {byte for one in merged for byte in range(one.start, one.end)} == bytes_of
    assert all(a.end < b.start for a, b in itertools.pairwise(merged))
    assert all(one.length > 0 for one in merged)


@pytest.mark.parametrize(
    ("since", "now", "change"),
    [
        ("uuid-1/52 aa/3", "uuid-1/52 aa/7", "52 aa/3"),
        ("uuid-2/52 aa/3", "uuid-1/52 aa/7", ""),  # another disk
        ("uuid-1/52 bb/3", "uuid-1/52 aa/7", ""),  # tracked anew
        ("vmkeep-shop-20261124T221500Z-1a2b3c4d", "uuid-1/52 aa/7", ""),  # a mark of libvirt
        ("uuid-1/52 aa/3", "", ""),
        ("", "", ""),
    ],
)
def test_a_mark_counts_only_for_the_same_disk_and_the_same_tracking(since, now, change):
    assert changes.change_of(since, now) == change


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("vcenter.example", "vcenter.example", 443),
        ("vcenter.example:8443", "vcenter.example", 8443),
        ("192.0.2.1", "192.0.2.1", 443),
        ("2001:db8::1", "2001:db8::1", 443),
        ("[2001:db8::1]", "2001:db8::1", 443),
        ("[2001:db8::1]:8443", "2001:db8::1", 8443),
    ],
)
def test_an_address_may_name_a_port(text, host, port):
    assert address_of(text) == Address(host, port)


def test_a_certificate_is_checked_unless_the_fleet_file_says_otherwise():
    assert address_of("localhost").context().verify_mode is ssl.CERT_REQUIRED
    assert address_of("localhost").context().check_hostname
    assert address_of("localhost", verify=False).context().verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (vim.fault.InvalidLogin(), AccessError),
        (vim.fault.NoPermission(privilegeId="VApp.Export"), AccessError),
        (vmodl.fault.ManagedObjectNotFound(), NotFoundError),
        (vim.fault.TaskInProgress(), TemporaryError),
        (vim.fault.FileLocked(), TemporaryError),
        (vmodl.fault.HostNotReachable(), TemporaryError),
        (ConnectionResetError("reset"), TemporaryError),
        (TimeoutError("slow"), TemporaryError),
        (vim.fault.DuplicateName(name="db1"), InputError),
        (vmodl.fault.InvalidArgument(), InputError),
        (vmodl.fault.NotSupported(), UnsupportedError),
        (vim.fault.InvalidPowerState(), SourceChangedError),
        (vim.fault.NoDiskSpace(), SourceError),
        (vim.fault.SnapshotFault(msg="it broke"), SourceError),
    ],
    ids=lambda one: type(one).__name__ if not isinstance(one, type) else one.__name__,
)
def test_each_fault_is_what_the_operator_does_next(fault, error):
    found = meaning(fault, "VM db1")

    assert type(found) is error
    assert str(found).startswith("VM db1: ")


def test_a_refused_privilege_is_named():
    assert "VApp.Export" in str(meaning(vim.fault.NoPermission(privilegeId="VApp.Export"), "VM db1"))


def test_a_definition_of_another_driver_is_no_vm_of_vsphere():
    with pytest.raises(InputError, match="vmkeep configure"):
        captured.parse("<domain/>", "db1")


def test_disks_are_called_by_their_places_whatever_file_a_snapshot_gives_them():
    devices = [
        vim.vm.device.ParaVirtualSCSIController(key=1000, busNumber=0),
        vim.vm.device.VirtualAHCIController(key=15000, busNumber=0),
        *(
            vim.vm.device.VirtualDisk(
                key=2000 + number,
                controllerKey=owner,
                unitNumber=unit,
                capacityInKB=4096,
                backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=f"[ds] db1/db1-{number}.vmdk"),
            )
            for number, (owner, unit) in enumerate([(15000, 0), (1000, 10), (1000, 2)])
        ),
    ]
    extra = [vim.option.OptionValue(key="vmkeep.disk.scsi0:10", value="data")]
    machine = read(
        {"name": "db1", "config.hardware.device": devices, "config.extraConfig": extra, "config.uuid": "u"},
        {},
    )

    assert [(disk.place, disk.name) for disk in machine.disks] == [
        ("scsi0:2", "disk1"), ("scsi0:10", "data"), ("sata0:0", "disk3"),
    ]  # fmt: skip
    assert captured.parse(machine.captured().to_json(), "db1") == machine.captured()


@pytest.mark.parametrize(
    ("url", "asked", "cookie"),
    [
        ("https://*/nfc/52-ab/disk-0.vmdk", "https://vc.example:8443/nfc/52-ab/disk-0.vmdk", "session=1"),
        ("https://esx1.example/nfc/52-ab/disk-0.vmdk", "https://esx1.example/nfc/52-ab/disk-0.vmdk", ""),
    ],
)
def test_a_host_is_never_shown_the_session_of_vcenter(url, asked, cookie):
    connection = SimpleNamespace(address=address_of("vc.example:8443"), cookie="session=1")
    remote = transfer.leased(connection, url, None)

    assert (remote.url, remote.cookie) == (asked, cookie)


def test_files_are_never_fetched_without_tls():
    with pytest.raises(UnsupportedError, match="not by https"):
        transfer.Remote(address_of("vc.example"), "http://esx1.example/nfc/disk-0.vmdk").connect()


def lease_with(*keys):
    lease = object.__new__(Lease)
    lease._what = "VM db1"
    lease.urls = [vim.HttpNfcLease.DeviceUrl(key=key, importKey="", url="https://*/x") for key in keys]
    return lease


def test_a_disk_of_a_lease_is_found_by_its_place_whatever_the_order():
    lease = lease_with("/vm-1/ParaVirtualSCSIController0:10", "/vm-1/ParaVirtualSCSIController0:1")

    assert lease.url_of("scsi0:1").key.endswith("0:1")
    assert lease.url_of("scsi0:10").key.endswith("0:10")
    assert lease_with("/vm-1/VirtualDisk:2001").url_of("scsi0:1", 2001)
    both = lease_with("/vm-1/VirtualAHCIController0:1", "/vm-1/VirtualLsiLogicController0:1")
    assert "LsiLogic" in both.url_of("scsi0:1").key
    assert "AHCI" in both.url_of("sata0:1").key


@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("/vm-1/disk-0",),
        ("/vm-1/ParaVirtualSCSIController0:1", "/vm-2/ParaVirtualSCSIController0:1"),
        ("/vm-1/SomethingNewController0:1",),
    ],
)
def test_a_disk_of_a_lease_is_never_guessed(keys):
    with pytest.raises(SourceError, match="does not say which disk"):
        lease_with(*keys).url_of("scsi0:1", 2001)


def test_a_new_disk_never_gets_the_place_that_is_kept_for_another():
    changes = Changes(None)

    assert changes.free_place(but={"scsi0:0", "scsi0:2"}) == "scsi0:1"
    assert changes.free_place(but={"scsi0:0", "scsi0:2"}) == "scsi0:3"
    assert changes.free_place() == "scsi0:0"


def test_the_place_of_the_controller_itself_is_no_disks():
    changes = Changes(None)

    places = [changes.free_place() for _ in range(16)]
    assert "scsi0:7" not in places
    assert places[-1] == "scsi1:0"
