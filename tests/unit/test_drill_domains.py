"""A domain of a drill keeps nothing of the host that others use, and lies in one network."""

import pytest

from vmkeep.hypervisors.libvirt import drill as drills
from vmkeep.hypervisors.libvirt.machine import parse

ISOLATED = "vmkeep-drill-20260101T010000Z-0123abcd"
DOMAIN = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>db1-drill</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <memory unit='KiB'>1024</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><source file='/images/a.qcow2'/><target dev='vda'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/debian.iso'/><target dev='sda'/><readonly/></disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/><source bridge='br0'/><vlan><tag id='7'/></vlan>
      <virtualport type='openvswitch'/><target dev='vnet7'/><model type='virtio'/>
      <filterref filter='clean-traffic'/><address type='pci' bus='0x01'/>
    </interface>
    <interface type='direct'><mac address='52:54:00:00:00:02'/><source dev='eth0' mode='bridge'/></interface>
    <interface type='hostdev' managed='yes'>
      <mac address='52:54:00:00:00:03'/><source><address type='pci'/></source>
    </interface>
    <hostdev mode='subsystem' type='pci'><source><address bus='0x3b'/></source></hostdev>
    <filesystem type='mount'><source dir='/srv/shared'/><target dir='shared'/></filesystem>
    <shmem name='ours'/>
    <lease><key>db1</key></lease>
    <redirdev bus='usb' type='tcp'/>
    <memory model='nvdimm'><source><path>/dev/pmem0</path></source></memory>
    <tpm model='tpm-crb'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <input type='evdev'><source dev='/dev/input/event1'/></input>
    <input type='tablet' bus='usb'/>
    <serial type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/><protocol type='raw'/></serial>
    <console type='pty'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' port='5907' autoport='no' websocket='5700'/>
    <vsock model='virtio'><cid auto='no' address='42'/></vsock>
  </devices>
  <qemu:commandline><qemu:arg value='-netdev'/><qemu:arg value='user,id=x'/></qemu:commandline>
</domain>
"""


class FakeNetwork:
    """The drill's network as libvirt describes it; what is told to it is kept."""

    def __init__(self):
        self.told = []

    def name(self):
        return ISOLATED

    def XMLDesc(self):  # noqa: N802  (libvirt's)
        return "<network><ip address='198.18.5.1' netmask='255.255.255.0'><dhcp/></ip></network>"

    def update(self, *arguments):
        self.told.append(arguments)


@pytest.fixture
def network():
    return FakeNetwork()


@pytest.fixture
def attached(network, monkeypatch):
    drill = drills.Drill(None)
    monkeypatch.setattr(drill, "_find", lambda _: network)
    root = parse(DOMAIN, what="db1")
    changes = [*drill.attach(root, "db1", ISOLATED)]
    return root, changes


def test_all_adapters_are_in_the_drills_network_and_keep_what_the_guest_sees(attached):
    root, _ = attached

    adapters = root.findall("devices/interface")
    assert [one.get("type") for one in adapters] == ["network"] * 3
    assert [dict(one.find("source").attrib) for one in adapters] == [{"network": ISOLATED}] * 3
    assert {child.tag for one in adapters for child in one} == {"mac", "source", "model", "address"}
    assert len({one.find("mac").get("address") for one in adapters}) == 3


@pytest.mark.parametrize(
    "tag",
    ["hostdev", "filesystem", "shmem", "lease", "redirdev", "memory", "cdrom", "commandline", "input", "tpm"],
)
def test_what_is_the_hosts_is_taken_away_and_told(attached, tag):
    root, changes = attached

    assert tag in {change.what for change in changes}
    left = [one for one in root.findall("devices/*") if one.tag == tag]
    assert [one.get("type") or one.find("backend").get("type") for one in left] == {
        "input": ["tablet"], "tpm": ["emulator"],
    }.get(tag, [])  # fmt: skip


def test_its_memory_stays_and_its_disk_and_its_agent(attached):
    root, _ = attached

    assert root.findtext("memory") == "1024"
    assert root.find("devices/disk[@device='disk']/source").get("file") == "/images/a.qcow2"
    assert root.find("devices/channel").get("type") == "unix"


def test_no_port_of_the_host_and_no_medium_is_taken_twice(attached):
    root, _ = attached

    assert root.find("devices/disk[@device='cdrom']/source") is None
    assert root.find("devices/serial").get("type") == "pty"
    assert root.find("devices/serial/source") is None
    assert dict(root.find("devices/graphics").attrib) == {"type": "vnc", "autoport": "yes"}
    assert dict(root.find("devices/vsock/cid").attrib) == {"auto": "yes"}


def test_it_carries_the_mark_and_a_definition_that_is_restored_otherwise_does_not(attached):
    root, _ = attached
    assert drills.drill_of(root) == ISOLATED

    drills.unmark(root)
    assert drills.drill_of(root) is None


def test_guests_that_ask_by_dhcp_find_it_under_its_originals_name(attached, network):
    assert attached
    ((*_, host, _),) = network.told

    assert 'name="db1"' in host
    assert 'mac="52:54:00:00:00:01"' in host
    assert 'ip="198.18.5.10"' in host
