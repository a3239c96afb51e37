"""Which way into a VM is taken."""

from pathlib import Path

import pytest

from vmkeep.errors import UnsupportedError
from vmkeep.fleet.model import VM
from vmkeep.guests.agent import AgentGuest
from vmkeep.guests.open import open_guest
from vmkeep.guests.ssh import SshGuest

SSH = {"host": "db1.example", "key_file": "keys/db1"}


class Channel:
    def close(self):
        pass


def opened(guest):
    vm = VM.model_validate({"hypervisor": "rack1", "guest": guest})
    return open_guest("db1", vm, Channel, base=Path("/etc/fleet"))


def test_the_agent_comes_before_ssh():
    assert isinstance(opened({"agent": True, "ssh": SSH}), AgentGuest)


def test_ssh_is_taken_where_no_agent_is_declared():
    guest = opened({"ssh": SSH})

    assert isinstance(guest, SshGuest)
    assert guest.target.key_file == Path("/etc/fleet/keys/db1")


def test_a_port_that_is_not_declared_is_left_to_the_ssh_configuration():
    assert opened({"ssh": SSH}).target.port is None
    assert opened({"ssh": {**SSH, "port": 22}}).target.port == 22


@pytest.mark.parametrize("guest", [None, {"agent": False}])
def test_a_vm_without_a_way_into_it_is_refused(guest):
    with pytest.raises(UnsupportedError, match="VM db1: there is no way into it: declare guest"):
        opened(guest)
