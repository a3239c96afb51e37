"""A guest that somebody left frozen is not forgotten before it was thawed."""

from types import SimpleNamespace

import pytest

from vmkeep import fleet as fleets
from vmkeep.errors import TemporaryError
from vmkeep.operations import freeze
from vmkeep.operations.taken import Taken

FLEET = """\
version: 1
fleet: lab
repository: {store: ./repository, key: {file: ./key}}
hypervisors: {rack1: {driver: libvirt, uri: "qemu:///system"}}
vms: {db1: {hypervisor: rack1, disks: [{name: root, size: 1GiB}], guest: {agent: true}}}
"""


class Away:
    """A hypervisor whose VM runs, and whose agent cannot be reached."""

    def is_running(self, _vm):
        return True

    def agent(self, _vm):
        raise TemporaryError("the connection is lost")


def test_a_guest_that_cannot_be_reached_stays_noted(tmp_path):
    taken = Taken(tmp_path)
    taken.hold("db1", ["db1"])
    run = SimpleNamespace(taken=taken, file=fleets.loads(FLEET), hypervisor_of=lambda _vm: Away())

    with pytest.raises(TemporaryError, match="the connection is lost"):
        freeze.let_go(run, "db1")

    assert taken.held() == {"db1": ["db1"]}
