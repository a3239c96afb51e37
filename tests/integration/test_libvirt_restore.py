"""What was saved of a VM of libvirt comes back: in place, as another VM, and booting by itself."""

import subprocess
import time

import libvirt
import pytest

from vmkeep.components.guest import writable
from vmkeep.errors import InputError, NotFoundError, SourceChangedError, TemporaryError, UnsupportedError
from vmkeep.guests.agent import AgentGuest
from vmkeep.hypervisors.libvirt.machine import parse, read
from vmkeep.operations import repositories
from vmkeep.operations.files import into_folder
from vmkeep.operations.rescue import How, rescue
from vmkeep.testing import tiny_guest
from vmkeep.testing.boot_disk import build_boot_disk
from vmkeep.testing.rack import Rack
from vmkeep.units import MiB

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))


@pytest.fixture
def rack(libvirtd, tmp_path):
    libvirtd.define_network("lan")
    rack = Rack(
        tmp_path, libvirtd, "vms:\n  db1: {disks: [{name: root, size: 64MiB}, {name: data, size: 16MiB}]}\n"
    )
    rack.pause("db1")
    rack.poke("db1", "root", at="0", length="8M", pattern=0x11)
    rack.poke("db1", "data", at="1M", length="1M", pattern=0x12)
    rack.run("backup")
    return rack


def files(rack):
    return sorted(path.name for path in (rack.daemon.pools / "default").iterdir())


def digests(rack, vm):
    rack.domain(vm).suspend()
    return [rack.digest(vm, disk) for disk in ("root", "data")]


def machine(rack, vm):
    return read(parse(rack.domain(vm).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), what=vm))


def test_a_restored_vm_boots_from_its_restored_disk_and_passes_its_gate(libvirtd, tmp_path):
    rack = Rack(
        tmp_path,
        libvirtd,
        "vms:\n  db1:\n    memory: 256MiB\n    disks: [{name: root, size: 96MiB}]\n"
        "    guest: {agent: true}\n    health: [{agent: true, timeout: 180s}]\n",
    )
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "hello").write_text("from the first life\n")
    build_boot_disk(tmp_path / "boot.raw", tree, tiny_guest.build(tmp_path), size=96 * MiB)
    rack.fill("db1", "root", tmp_path / "boot.raw")
    rack.domain("db1").create()
    until_answering(rack, "db1").run(["/bin/sh", "-c", "echo more >> /data/hello; sync"], timeout_s=30)
    assert rack.run("backup").exit_code == 0
    rack.domain("db1").destroy()

    into_folder(rack.request("restore"), tmp_path / "found", paths=["/hello"], owners=False)
    assert (tmp_path / "found" / "hello").read_text() == "from the first life\nmore\n"
    report = rack.run("restore", rename={"db1": "db2"})
    assert report.exit_code == 0, report.outcomes
    guest = until_answering(rack, "db2")
    assert guest.run(["cat", "/data/hello"], timeout_s=30).out == b"from the first life\nmore\n"


def until_answering(rack, vm):
    guest = AgentGuest(rack.hypervisor.agent(vm), name=vm)
    deadline = time.monotonic() + 180
    while True:
        try:
            guest.ping(timeout_s=1)
        except TemporaryError:
            assert rack.domain(vm).isActive(), rack.console(vm)
            assert time.monotonic() < deadline, rack.console(vm)
            time.sleep(0.2)
        else:
            return guest


def test_a_vm_comes_back_in_place_and_the_old_disks_are_gone(rack):
    before = digests(rack, "db1")
    rack.poke("db1", "root", at="0", length="1M", pattern=0x99)
    rack.domain("db1").destroy()

    report = rack.run("restore", overwrite=True)
    assert report.exit_code == 0
    assert digests(rack, "db1") == before
    assert len(files(rack)) == 2
    assert "of which its disks held 8.00 MiB" in report.steps["restore db1/os"].text


def test_a_vm_that_runs_is_not_restored_in_place(rack):
    before = digests(rack, "db1")

    report = rack.run("restore", overwrite=True)
    assert isinstance(report.errors["configure db1"], SourceChangedError)
    assert digests(rack, "db1") == before
    assert len(files(rack)) == 2


def test_a_vm_that_was_lost_comes_back_as_itself(rack):
    before, identity = digests(rack, "db1"), machine(rack, "db1")
    rack.domain("db1").destroy()
    rack.domain("db1").undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    for path in (rack.daemon.pools / "default").iterdir():
        path.unlink()

    assert rack.run("restore").exit_code == 0
    assert digests(rack, "db1") == before
    assert machine(rack, "db1") == identity


def test_a_copy_has_an_identity_and_disks_of_its_own_and_the_difference_is_told(rack):
    rack.declare(
        "vms:\n  db1: {networks: [lan], disks: [{name: root, size: 64MiB}, {name: data, size: 16MiB}]}\n"
    )
    rack.domain("db1").destroy()
    rack.run("configure")
    rack.run("backup")
    report = rack.run("restore", rename={"db1": "db2"}, overwrite=False)

    original, copy = machine(rack, "db1"), machine(rack, "db2")
    assert original.uuid != copy.uuid
    assert {card.mac for card in original.cards}.isdisjoint(card.mac for card in copy.cards)
    assert {disk.path for disk in original.disks}.isdisjoint(disk.path for disk in copy.disks)
    assert {line.split(":")[0] for line in report.steps["configure db1"].details} >= {
        "~ name", "~ uuid", "~ networks.lan", "~ disks.root",
    }  # fmt: skip


ON_LAN = "vms:\n  db1: {networks: [lan], disks: [{name: root, size: 64MiB}, {name: data, size: 16MiB}]}\n"


@pytest.fixture
def on_lan(rack):
    """A VM on a network, powered off and saved."""
    rack.declare(ON_LAN)
    rack.domain("db1").destroy()
    rack.run("configure")
    assert rack.run("backup").exit_code == 0
    return rack


def test_a_copy_may_lie_in_another_pool_and_on_another_network(on_lan):
    on_lan.daemon.define_network("dmz")
    fast = on_lan.daemon.define_pool("fast")
    before = [on_lan.digest("db1", disk) for disk in ("root", "data")]
    report = on_lan.run("restore", rename={"db1": "db2"}, networks={"lan": "dmz"}, storage="fast")

    copy = machine(on_lan, "db2")
    assert [card.network for card in copy.cards] == ["dmz"]
    assert {disk.path.parent for disk in copy.disks} == {fast}
    assert [on_lan.digest("db2", disk) for disk in ("root", "data")] == before
    assert "~ networks.lan: lan -> dmz" in report.steps["configure db1"].details


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"networks": {"lan": "nowhere"}}, "there is no network nowhere"),
        ({"networks": {"lna": "lan"}}, "no VM that is restored was on network lna"),
        ({"storage": "nowhere"}, "there is no storage pool nowhere"),
        ({"hypervisors": ["nowhere"]}, "there is no hypervisor 'nowhere'"),
        ({"hypervisors": ["here"], "instant": True}, "leave --hypervisor out"),
    ],
)
def test_a_place_that_is_not_there_is_refused_before_anything_is_made(on_lan, how, words):
    before = files(on_lan)

    with pytest.raises(InputError, match=words):
        on_lan.run("restore", rename={"db1": "db2"}, **how)
    assert files(on_lan) == before
    assert not on_lan.hypervisor.exists("db2")


def test_the_disks_of_a_vm_that_exists_do_not_move(on_lan):
    on_lan.daemon.define_pool("fast")
    before = files(on_lan)

    report = on_lan.run("restore", overwrite=True, storage="fast")
    assert "its disks stay where they are" in str(report.errors["configure db1"])
    assert files(on_lan) == before


def test_one_disk_comes_back_and_the_others_stay_as_they_are(rack):
    saved = digests(rack, "db1")
    rack.poke("db1", "root", at="0", length="1M", pattern=0x99)
    rack.poke("db1", "data", at="0", length="2M", pattern=0x98)
    changed = digests(rack, "db1")
    rack.domain("db1").destroy()

    assert rack.run("restore", targets=["db1"], disks=["data"], overwrite=True).exit_code == 0
    assert digests(rack, "db1") == [changed[0], saved[1]]
    assert len(files(rack)) == 2


def test_a_disk_that_was_not_saved_is_refused_before_anything_is_touched(rack):
    with pytest.raises(NotFoundError, match=r"no such disk as a whole \(they hold data, root\)"):
        rack.run("restore", disks=["logs"], overwrite=True)
    with pytest.raises(InputError, match="into a VM that exists"):
        rack.run("restore", disks=["data"], rename={"db1": "db2"})


@pytest.mark.parametrize("rename", [{}, {"db1": "db2"}], ids=["as itself", "as a copy"])
def test_a_vm_of_a_host_that_was_lost_comes_back_on_another(rack, second_libvirtd, rename):
    before = digests(rack, "db1")
    rack.domain("db1").destroy()
    rack.domain("db1").undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    second_libvirtd.define_pool("default")
    there = f'there: {{driver: libvirt, uri: "{second_libvirtd.uri}", sockets: "{second_libvirtd.sockets}"}}'
    rack.path.write_text(
        rack.path.read_text().replace("hypervisors: {here: ", f"hypervisors: {{{there}, here: ")
    )

    report = rack.run("restore", rename=rename, hypervisors=["there"])

    assert report.exit_code == 0, report.errors
    vm = rename.get("db1", "db1")
    assert "on there" in report.steps["place db1"].text
    told = "".join(report.steps["place db1"].details)
    assert ("say 'hypervisor: there' in the fleet file" in told) == (not rename)
    rack.daemon = second_libvirtd
    assert digests(rack, vm) == before
    assert rack.domain(vm).isActive()


def test_vms_of_a_host_that_was_lost_are_spread_over_others_and_kept_apart(
    libvirtd, second_libvirtd, tmp_path, monkeypatch
):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    second_libvirtd.define_pool("default")
    one = "disks: [{name: root, size: 4MiB}]"
    rack = Rack(tmp_path, libvirtd, f"vms: {{web1: {{{one}}}, web2: {{{one}}}}}\n")
    assert rack.run("backup").exit_code == 0
    for vm in ("web1", "web2"):
        rack.domain(vm).undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    there = f'there: {{driver: libvirt, uri: "{second_libvirtd.uri}", sockets: "{second_libvirtd.sockets}"}}'
    apart = rack.path.read_text().replace("hypervisors: {here: ", f"hypervisors: {{{there}, here: ")
    apart = apart.replace("web2: {", "web2: {hypervisor: there, placement: {away_from: [web1]}, ")
    rack.path.write_text(apart)

    report = rack.run("restore", hypervisors=["here", "there"])

    assert report.exit_code == 0, report.errors
    hosts = [
        [domain.name() for domain in daemon.connection.listAllDomains()]
        for daemon in (libvirtd, second_libvirtd)
    ]
    assert sorted(hosts) == [["web1"], ["web2"]]


def test_after_a_restore_nothing_is_inherited_from_the_disk_that_was_replaced(rack):
    rack.domain("db1").destroy()
    rack.run("restore", overwrite=True)
    rack.domain("db1").suspend()
    rack.poke("db1", "root", at="30M", length="64k", pattern=0x55)

    assert rack.run("backup").exit_code == 0
    assert rack.saved_digest("db1", "root") == rack.digest("db1", "root")
    assert len(rack.checkpoints("db1")) == 1


def test_an_interrupted_restore_leaves_nothing_when_it_is_discarded(rack):
    rack.domain("db1").destroy()
    before = files(rack)
    rack.hypervisor.create_disk("db1", "root", size=64 * MiB, format="qcow2").close()
    assert files(rack) != before

    rack.hypervisor.discard_disks("db1", ["root"])
    assert files(rack) == before


def test_a_point_is_rescued_on_a_machine_without_libvirt(rack, tmp_path):
    with repositories.open_repository(rack.file) as repository:
        (rescued,) = rescue(repository, [repository.point("db1")], tmp_path / "rescued", How())

    assert rescued.failed == {}
    definition = tmp_path / "rescued" / "db1" / "domain.xml"
    assert "<name>db1</name>" in definition.read_text()
    assert definition.stat().st_mode & 0o777 == 0o600
    found = tmp_path / "data.raw"
    image = tmp_path / "rescued" / "db1" / "data.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, found], check=True)
    assert found.read_bytes()[1024**2 : 2 * 1024**2] == b"\x12" * 1024**2


def test_files_are_not_written_into_disks_that_lie_among_others(rack):
    with pytest.raises(UnsupportedError, match="storage pool"), writable(rack.hypervisor, "db1"):
        pass
