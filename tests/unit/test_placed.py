"""On which hypervisors a restore puts VMs: what the fleet file says is kept, also of those that stay."""

import pytest

from vmkeep.errors import InputError
from vmkeep.fleet import loads
from vmkeep.hypervisors.base import Capacity, Storage
from vmkeep.operations import placed as module
from vmkeep.operations.placed import placed
from vmkeep.operations.request import Request
from vmkeep.units import GiB

FLEET = """\
version: 1
fleet: shop
repository: {store: ./repository, key: {file: ./key}}
hypervisors:
  rack1: {driver: libvirt, uri: "qemu+ssh://rack1/system"}
  rack2: {driver: libvirt, uri: "qemu+ssh://rack2/system"}
  rack3: {driver: libvirt, uri: "qemu+ssh://rack3/system"}
defaults: {hypervisor: rack1, memory: 8GiB}
vms:
  db1: {disks: [{name: root, size: 1GiB, storage: fast}], placement: {away_from: [db2]}}
  db2: {hypervisor: rack2, disks: [{name: root, size: 1GiB}]}
  app1: {depends_on: [db1], disks: [{name: root, size: 1GiB}]}
  cache1: {hypervisor: rack2, disks: [{name: root, size: 1GiB}], placement: {near: [db2]}}
"""
ROOMS = {"rack1": 30, "rack2": 30, "rack3": 20}


class Rack:
    def __init__(self, name):
        self.name = name

    def capacity(self):
        storages = () if self.name == "rack3" else (Storage("fast", GiB, GiB), Storage("default", GiB, GiB))
        free = ROOMS[self.name] * GiB
        return Capacity(16, 32 * GiB, free, storages or (Storage("default", GiB, GiB),))


@pytest.fixture
def chosen(monkeypatch):
    monkeypatch.setattr(module, "open_hypervisor", lambda name, *_: Rack(name))

    def choose(*hypervisors, text=FLEET, **how):
        file = loads(text)
        request = Request(operation="restore", fleet=file.path, hypervisors=hypervisors, **how)
        return placed(file, request).placed

    return choose


def test_without_a_choice_each_stays_where_it_is_declared(chosen):
    assert chosen() == {}


def test_one_hypervisor_takes_all_and_is_not_asked_for_room(chosen, monkeypatch):
    monkeypatch.setitem(ROOMS, "rack3", 0)

    assert chosen("rack3") == dict.fromkeys(("db1", "db2", "app1", "cache1"), "rack3")


def test_of_several_all_get_one_with_room_and_what_is_to_be_apart_is(chosen):
    found = chosen("rack1", "rack2")

    assert found["db1"] != found["db2"] == found["cache1"]


def test_what_is_not_restored_counts_where_it_runs(chosen):
    assert chosen("rack1", "rack2", targets=("db1",)) == {"db1": "rack1"}
    assert chosen("rack1", "rack2", "rack3", targets=("cache1",)) == {"cache1": "rack2"}
    with pytest.raises(
        InputError, match=r"rack1 does not run db2, which cache1 is to be near; rack3 does not"
    ):
        chosen("rack1", "rack3", targets=("cache1",))


def test_a_hypervisor_without_the_storage_is_left_out_unless_another_is_named(chosen):
    with pytest.raises(
        InputError, match=r"rack2 runs db2.*rack3 has no storage fast \(--storage names another"
    ):
        chosen("rack2", "rack3", targets=("db1",))

    assert chosen("rack2", "rack3", targets=("db1",), storage="default") == {"db1": "rack3"}


def test_an_unknown_one_and_another_operation_are_refused(chosen):
    with pytest.raises(InputError, match="there is no hypervisor 'rack9'; did you mean"):
        chosen("rack1", "rack9")
    with pytest.raises(InputError, match="--hypervisor is for a restore, not for verify"):
        placed(loads(FLEET), Request(operation="verify", fleet="f.yaml", hypervisors=("rack1",)))


def test_a_request_that_was_kept_before_several_could_be_named_is_still_read():
    assert (
        Request.model_validate({"operation": "restore", "fleet": "f", "hypervisor": None}).hypervisors == ()
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("db2: {hypervisor: rack2,", "db2: {"),
        ("placement: {near: [db2]}", "hypervisor: rack1, placement: {near: [db2]}"),
    ],
)
def test_the_fleet_file_is_told_what_stands_on_the_wrong_host_already(changed, message):
    text = FLEET.replace("cache1: {hypervisor: rack2, ", "cache1: {") if "near" in changed else FLEET
    with pytest.raises(
        InputError, match=r"which is one host|is to be near db2, which is on rack2, not on rack1"
    ):
        loads(text.replace(changed, message))
