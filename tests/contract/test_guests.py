"""Every way into a running guest keeps the contract."""

import pytest

from vmkeep.errors import GuestError
from vmkeep.guests.agent import AgentGuest
from vmkeep.guests.agent_socket import SocketChannel
from vmkeep.testing import tiny_guest
from vmkeep.testing.guests import Volume, build_filesystem
from vmkeep.testing.running_guests import GuestContract

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def booted(tmp_path_factory):
    """A tiny guest with a disk and a network adapter."""
    folder = tmp_path_factory.mktemp("guest")
    (folder / "tree").mkdir()
    build_filesystem(folder / "data.raw", Volume(folder / "tree"))
    files = tiny_guest.build(folder)
    with tiny_guest.running(
        files, folder, disks=[(folder / "data.raw", "raw")], forward=[(0, 80)]
    ) as machine:
        yield machine


class TestAgentGuest(GuestContract):
    address = "10.0.2.15"

    @pytest.fixture
    def guest(self, booted):
        with AgentGuest(SocketChannel(booted.agent_socket, name="VM db1"), name="VM db1") as guest:
            guest.ping(timeout_s=60)
            yield guest

    def test_a_frozen_guest_runs_no_command_and_says_why(self, guest):
        guest.freeze()
        try:
            with pytest.raises(GuestError, match="frozen, and runs no command until it thaws"):
                guest.run(["true"], timeout_s=5)
        finally:
            guest.thaw()

    def test_closing_thaws(self, booted, guest):
        with AgentGuest(SocketChannel(booted.agent_socket, name="VM db1"), name="VM db1") as other:
            guest.close()  # QEMU serves one connection at a time
            other.freeze()

        guest.ping()
        assert not guest.frozen()
