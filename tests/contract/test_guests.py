"""Every way into a running guest keeps the contract."""

import pytest

from vmkeep.errors import GuestError, TemporaryError
from vmkeep.guests.agent import AgentGuest
from vmkeep.guests.agent_socket import SocketChannel
from vmkeep.guests.ssh import SshGuest
from vmkeep.testing import tiny_guest
from vmkeep.testing.guests import Volume, build_filesystem
from vmkeep.testing.running_guests import GuestContract, eventually

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def booted(tmp_path_factory):
    """A tiny guest with a disk, an address and an SSH server, and how to log in there."""
    folder = tmp_path_factory.mktemp("guest")
    (folder / "tree").mkdir()
    build_filesystem(folder / "data.raw", Volume(folder / "tree"))
    with tiny_guest.with_ssh(folder, disks=[(folder / "data.raw", "raw")]) as (machine, target):
        yield machine, target


class TestAgentGuest(GuestContract):
    address = "10.0.2.15"

    @pytest.fixture(scope="class")
    @classmethod
    def guest(cls, booted):
        with AgentGuest(SocketChannel(booted[0].agent_socket, name="VM db1"), name="VM db1") as guest:
            guest.ping(timeout_s=120)
            yield guest

    def test_a_frozen_guest_runs_no_command_and_says_why(self, guest):
        guest.freeze()
        try:
            with pytest.raises(GuestError, match="frozen, and runs no command until it thaws"):
                guest.run(["true"], timeout_s=5)
        finally:
            guest.thaw()

    def test_closing_thaws(self, booted, guest):
        with AgentGuest(SocketChannel(booted[0].agent_socket, name="VM db1"), name="VM db1") as other:
            guest.close()  # QEMU serves one connection at a time
            other.freeze()

        guest.ping()
        assert not guest.frozen()


class TestSshGuest(GuestContract):
    address = "10.0.2.15"

    @pytest.fixture(scope="class")
    @classmethod
    def guest(cls, booted):
        with SshGuest(booted[1], name="VM db1") as guest:
            assert eventually(lambda: answers(guest), timeout_s=120)
            yield guest

    def test_whoever_finds_a_frozen_guest_thaws_it(self, booted, guest):
        guest.freeze()

        with SshGuest(booted[1], name="VM db1") as other:
            assert other.thaw() >= 1
        assert guest.thaw() == 0

    def test_closing_thaws(self, booted, guest):
        with SshGuest(booted[1], name="VM db1") as other:
            other.freeze()

        assert not guest.frozen()

    def test_a_lost_connection_thaws(self, booted, guest):
        other = SshGuest(booted[1], name="VM db1")
        other.freeze()
        other._connection._process.kill()

        assert eventually(lambda: not guest.frozen())
        other.close()


def answers(guest):
    try:
        guest.ping()
    except TemporaryError:
        return False
    return True
