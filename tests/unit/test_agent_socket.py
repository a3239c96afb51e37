"""The channel to a guest agent, against agents that misbehave."""

import contextlib
import json
import socket
import threading

import pytest

from vmkeep.errors import GuestError, TemporaryError
from vmkeep.guests.agent_commands import Commands
from vmkeep.guests.agent_socket import SocketChannel


class Agent:
    """Answers on a Unix socket as a guest agent does, one command at a time: bytes by command.

    Before that, it waits for an event, if there is one for the command.
    """

    def __init__(self, path):
        self.path = path
        self.replies, self.waits = {}, {}
        self.connections = 0
        self.answered = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
                    self._answer(connection, lines)

    def _answer(self, connection, lines):
        for line in lines:
            command = json.loads(line.lstrip(b"\xff"))
            if command["execute"] == "guest-sync-delimited":
                number = command["arguments"]["id"]
                connection.sendall(b"\xff" + json.dumps({"return": number}).encode() + b"\n")
                continue
            reply = self.replies[command["execute"]]
            if reply is None:
                return
            if command["execute"] in self.waits:
                assert self.waits[command["execute"]].wait(60)
            connection.sendall(reply)
            self.answered.set()

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def agent(tmp_path):
    agent = Agent(tmp_path / "agent")
    yield agent
    agent.close()


@pytest.fixture
def channel(agent):
    channel = SocketChannel(agent.path, name="VM db1")
    yield channel
    channel.close()


def call(channel, execute="guest-info", timeout_s=60):
    return channel.call(execute, {}, timeout_s=timeout_s)


def test_the_answer_of_a_command_that_was_given_up_is_never_taken_for_the_next_one(agent, channel):
    agent.replies = {"guest-slow": b'{"return": "late"}\n', "guest-info": b'{"return": "right"}\n'}
    agent.waits["guest-slow"] = late = threading.Event()

    with pytest.raises(TemporaryError, match="did not answer guest-slow within"):
        call(channel, "guest-slow", timeout_s=0.1)
    threading.Timer(0.1, late.set).start()
    assert call(channel) == "right"


def test_a_late_answer_that_comes_before_the_synchronization_is_forgotten(agent, channel):
    agent.replies = {"guest-slow": b'{"return": "late"}\n', "guest-info": b'{"return": "right"}\n'}
    agent.waits["guest-slow"] = late = threading.Event()

    with pytest.raises(TemporaryError):
        call(channel, "guest-slow", timeout_s=0.1)
    late.set()
    agent.answered.wait(1)  # not at all, when we gave up before the agent was asked
    assert call(channel) == "right"


def test_a_refusal_carries_the_agents_words(agent, channel):
    agent.replies = {"guest-info": b'{"error": {"class": "GenericError", "desc": "not today"}}\n'}

    with pytest.raises(GuestError, match="VM db1: its guest agent refuses guest-info: not today"):
        call(channel)


def test_a_lost_connection_is_made_anew_by_the_next_call(agent, channel):
    agent.replies = {"guest-die": None, "guest-info": b'{"return": 1}\n'}

    with pytest.raises(TemporaryError, match="closed the connection"):
        call(channel, "guest-die")
    assert call(channel) == 1
    assert agent.connections == 2


@pytest.mark.parametrize("reply", [b"rubbish\n", b"[1, 2]\n", b"\xff\xfe\n"])
def test_rubbish_is_an_error_and_the_next_call_starts_afresh(agent, channel, reply):
    agent.replies = {"guest-odd": reply, "guest-info": b'{"return": 1}\n'}

    with pytest.raises(GuestError, match="rubbish"):
        call(channel, "guest-odd")
    assert call(channel) == 1


def test_an_answer_without_end_is_cut_off(agent, channel):
    agent.replies = {"guest-info": b"x" * (17 * 1024 * 1024)}

    with pytest.raises((GuestError, TemporaryError), match=r"rubbish: more than|no guest agent"):
        call(channel)


def test_nobody_at_the_socket_is_temporary(tmp_path):
    with pytest.raises(TemporaryError, match="no guest agent at"):
        call(SocketChannel(tmp_path / "nothing", name="VM db1"))


@pytest.mark.parametrize(
    ("ask", "execute", "answer"),
    [
        (lambda commands: commands.freeze(1), "guest-fsfreeze-freeze", '"many"'),
        (lambda commands: commands.freeze(1), "guest-fsfreeze-freeze", "-1"),
        (lambda commands: commands.ended(1, 1), "guest-exec-status", '{"exited": "yes"}'),
        (lambda commands: commands.ended(1, 1), "guest-exec-status", '{"exited": true, "out-data": "%"}'),
        (lambda commands: commands.addresses(1), "guest-network-get-interfaces", "{}"),
        (
            lambda commands: commands.addresses(1),
            "guest-network-get-interfaces",
            '[{"ip-addresses": [{"ip-address": "1.2.3"}]}]',
        ),
    ],
)
def test_an_answer_of_the_wrong_shape_is_an_error(agent, channel, ask, execute, answer):
    agent.replies = {execute: f'{{"return": {answer}}}\n'.encode()}

    with pytest.raises(GuestError, match="answers with rubbish"):
        ask(Commands(channel, name="VM db1"))
