"""A guest agent whose guest goes away."""

import threading

import pytest

from vmkeep.errors import TemporaryError
from vmkeep.guests.agent import AgentGuest
from vmkeep.guests.agent_socket import SocketChannel
from vmkeep.testing import tiny_guest

pytestmark = pytest.mark.integration


def test_a_guest_that_is_killed_in_the_middle_of_a_command_is_told_at_once(tmp_path):
    with (
        tiny_guest.running(tiny_guest.build(tmp_path), tmp_path) as machine,
        AgentGuest(SocketChannel(machine.agent_socket, name="VM db1"), name="VM db1") as guest,
    ):
        guest.ping(timeout_s=60)
        threading.Timer(0.5, machine.process.kill).start()

        with pytest.raises(TemporaryError, match="VM db1: no guest agent"):  # nothing about a time-out
            guest.run(["sleep", "600"], timeout_s=120)


def test_an_agent_that_was_lost_and_came_back_is_spoken_to_again(tmp_path):
    with (
        tiny_guest.running(tiny_guest.build(tmp_path), tmp_path) as machine,
        AgentGuest(SocketChannel(machine.agent_socket, name="VM db1"), name="VM db1") as guest,
    ):
        guest.ping(timeout_s=60)
        with pytest.raises(TemporaryError):
            guest.run(["killall", "-9", "qemu-ga"], timeout_s=2)

        guest.ping(timeout_s=60)  # the guest's init starts another
        assert guest.run(["echo", "back"], timeout_s=60).out == b"back\n"
