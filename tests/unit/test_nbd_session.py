"""Clients of the NBD server that know the protocol by heart, and clients that break every rule of it."""

import contextlib
import random
import socket
import struct
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmkeep.disks import nbd_protocol as nbd
from vmkeep.disks.device import Extent
from vmkeep.disks.nbd import NbdConnection
from vmkeep.disks.nbd_server import MOST_CONNECTIONS, serving
from vmkeep.errors import SourceError, TemporaryError
from vmkeep.hypervisors.memory import MemoryDisk
from vmkeep.testing.disks import read
from vmkeep.testing.running_guests import eventually
from vmkeep.units import KiB, MiB

SIZE = 4 * MiB + 1000
FLAGS = 1 | 2 | 4 | 128 | 256 | 1024
"""Has flags, read-only, flush, don't fragment, several connections, cache."""
ANY_TIME = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def filled():
    disk = Served(SIZE)
    disk.write(0, random.Random(1).randbytes(300 * KiB))
    disk.write(2 * MiB + 7, random.Random(2).randbytes(1 * MiB))
    disk.write(SIZE - 100, b"the end" * 10)
    return disk


class Served(MemoryDisk):
    """Tells which parts of a range hold data."""

    def extents_within(self, start, length):
        for one in self.extents():
            if one.start < start + length and start < one.end:
                first = max(one.start, start)
                yield Extent(first, min(one.end, start + length) - first)


class BadSpot(Served):
    """Cannot be read where it is bad."""

    bad = 3 * MiB

    def read_into(self, offset, buffer):
        if offset <= self.bad < offset + len(buffer):
            raise SourceError(f"byte {self.bad} is damaged")
        super().read_into(offset, buffer)


@pytest.fixture(scope="module")
def disk():
    return filled()


@pytest.fixture(scope="module")
def path(tmp_path_factory, disk):
    """The socket of a server with the disks `root`, and `bad`, which has a bad spot."""
    path = tmp_path_factory.mktemp("nbd") / "s"
    exports = {"root": disk, "bad": BadSpot(SIZE)}
    with serving(exports, path):
        yield path


# --- with bare hands


class Client:
    """Speaks the protocol byte by byte."""

    def __init__(self, connection):
        self.socket = connection
        self.socket.settimeout(10)

    @classmethod
    def unix(cls, path):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        return cls(connection)

    @classmethod
    def tcp(cls, port):
        return cls(socket.create_connection(("127.0.0.1", port)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def receive(self, length):
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def greet(self, flags=3):
        assert self.receive(18) == b"NBDMAGICIHAVEOPT\0\3"
        self.socket.sendall(struct.pack(">I", flags))
        return self

    def option(self, number, data=b""):
        """Return the replies to an option: kind and body of each."""
        self.socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, number, len(data)) + data)
        replies = []
        while not replies or not (replies[-1][0] == nbd.Reply.ACK or replies[-1][0] >= 1 << 31):
            magic, echoed, kind, length = nbd.OPTION_REPLY.unpack(self.receive(20))
            assert (magic, echoed) == (nbd.REPLY_MAGIC, number)
            replies.append((kind, self.receive(length)))
        return replies

    def enter_in_the_old_way(self, name=b"root"):
        self.greet()
        self.socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.Option.EXPORT_NAME, len(name)) + name)
        size, flags = struct.unpack(">QH", self.receive(10))
        assert flags == FLAGS
        return size

    def ask(self, command, offset=0, length=0, *, flags=0, cookie=7, payload=b""):
        request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, cookie, offset, length)
        self.socket.sendall(request + payload)

    def simple(self):
        """Return error and cookie of a simple reply."""
        magic, error, cookie = nbd.SIMPLE.unpack(self.receive(16))
        assert magic == nbd.SIMPLE_MAGIC
        return error, cookie

    def is_over(self):
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


@pytest.fixture
def client(path):
    with Client.unix(path) as client:
        yield client


def name(text, rest=b""):
    return struct.pack(">I", len(text)) + text + rest


@pytest.mark.parametrize(
    ("option", "data", "error"),
    [
        (nbd.Option.LIST, b"x", nbd.Reply.ERR_INVALID),
        (nbd.Option.GO, b"", nbd.Reply.ERR_INVALID),
        (nbd.Option.GO, struct.pack(">I", 1 << 30), nbd.Reply.ERR_INVALID),
        (nbd.Option.GO, name(b"root", b"\0\5"), nbd.Reply.ERR_INVALID),
        (nbd.Option.GO, name(b"\xff\xfe", b"\0\0"), nbd.Reply.ERR_INVALID),
        (nbd.Option.GO, name(b"none", b"\0\0"), nbd.Reply.ERR_UNKNOWN),
        (nbd.Option.SET_META_CONTEXT, name(b"root", struct.pack(">I", 0)), nbd.Reply.ERR_INVALID),
        (nbd.Option.SET_META_CONTEXT, name(b"root", struct.pack(">I", 9)), nbd.Reply.ERR_INVALID),
        (5, b"", nbd.Reply.ERR_UNSUP),
        (11, b"", nbd.Reply.ERR_UNSUP),
        (4711, b"what", nbd.Reply.ERR_UNSUP),
    ],
)
def test_a_wrong_option_is_refused_and_the_next_is_heard(client, option, data, error):
    client.greet()

    assert client.option(option, data)[-1][0] == error
    assert client.option(nbd.Option.LIST)[-1][0] == nbd.Reply.ACK


def test_contexts_are_listed_and_belong_to_the_export_they_were_chosen_for(client):
    client.greet().option(nbd.Option.STRUCTURED_REPLY)
    for queries in (struct.pack(">I", 0), struct.pack(">I", 1) + name(b"base:")):
        assert (
            client.option(nbd.Option.LIST_META_CONTEXT, name(b"root", queries))[0][1][4:]
            == b"base:allocation"
        )
    client.option(nbd.Option.SET_META_CONTEXT, name(b"bad", struct.pack(">I", 1) + name(b"base:allocation")))
    client.option(nbd.Option.GO, name(b"root", b"\0\0"))

    client.ask(nbd.Command.BLOCK_STATUS, 0, 4096)
    magic, _, kind, cookie, length = nbd.CHUNK.unpack(client.receive(20))
    assert (magic, kind, cookie) == (nbd.CHUNK_MAGIC, nbd.Chunk.ERROR, 7)
    assert struct.unpack_from(">I", client.receive(length)) == (nbd.Errno.EINVAL,)


def test_one_extent_is_told_where_one_is_asked_for(client):
    client.greet().option(nbd.Option.STRUCTURED_REPLY)
    client.option(nbd.Option.SET_META_CONTEXT, name(b"root", struct.pack(">I", 1) + name(b"base:allocation")))
    client.option(nbd.Option.GO, name(b"root", b"\0\0"))

    client.ask(nbd.Command.BLOCK_STATUS, 0, SIZE, flags=nbd.CommandFlag.REQ_ONE)
    assert nbd.CHUNK.unpack(client.receive(20))[4] == 12
    client.receive(12)
    client.ask(nbd.Command.BLOCK_STATUS, 0, SIZE)
    assert nbd.CHUNK.unpack(client.receive(20))[4] > 12


def test_a_client_of_simple_replies_reads_megabytes(client, disk):
    assert client.enter_in_the_old_way() == SIZE

    client.ask(nbd.Command.READ, 5, 3 * MiB)
    assert client.simple() == (0, 7)
    assert client.receive(3 * MiB) == read(disk, 5, 3 * MiB)


def test_simple_replies_of_several_requests_do_not_mix(client, disk):
    client.enter_in_the_old_way()
    for number in range(8):
        client.ask(nbd.Command.READ, number * 100, 2 * MiB, cookie=number)

    for _ in range(8):
        error, cookie = client.simple()
        assert (error, client.receive(2 * MiB)) == (0, read(disk, cookie * 100, 2 * MiB))


def test_a_read_that_must_not_be_cut_comes_in_one_chunk(client, disk):
    client.greet().option(nbd.Option.STRUCTURED_REPLY)
    client.option(nbd.Option.GO, name(b"root", b"\0\0"))
    client.ask(nbd.Command.READ, 3, 2 * MiB, flags=nbd.CommandFlag.DF)

    magic, flags, kind, cookie, length = nbd.CHUNK.unpack(client.receive(20))
    assert (magic, flags, kind, cookie, length) == (
        nbd.CHUNK_MAGIC,
        nbd.DONE,
        nbd.Chunk.OFFSET_DATA,
        7,
        8 + 2 * MiB,
    )
    assert client.receive(length) == struct.pack(">Q", 3) + read(disk, 3, 2 * MiB)


def test_half_of_a_simple_reply_ends_the_connection(path):
    with Client.unix(path) as client:
        client.enter_in_the_old_way(b"bad")
        client.ask(nbd.Command.READ, BadSpot.bad, 4096)
        assert client.simple() == (nbd.Errno.EIO, 7)

        client.ask(nbd.Command.READ, BadSpot.bad - 2 * MiB, 3 * MiB)
        assert client.simple() == (0, 7)
        with pytest.raises((EOFError, ConnectionError)):
            client.receive(3 * MiB)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"command": nbd.Command.READ, "length": 0}, nbd.Errno.EINVAL),
        ({"command": nbd.Command.READ, "offset": SIZE, "length": 1}, nbd.Errno.EINVAL),
        ({"command": nbd.Command.READ, "offset": SIZE - 1, "length": 2}, nbd.Errno.EINVAL),
        ({"command": nbd.Command.READ, "offset": 2**64 - 1, "length": 2}, nbd.Errno.EINVAL),
        ({"command": nbd.Command.READ, "length": 1, "flags": 1 << 5}, nbd.Errno.EINVAL),
        ({"command": nbd.Command.BLOCK_STATUS, "length": 1}, nbd.Errno.EINVAL),
        ({"command": nbd.Command.WRITE, "length": 100_000, "payload": bytes(100_000)}, nbd.Errno.EPERM),
        ({"command": nbd.Command.TRIM, "length": 4096}, nbd.Errno.EPERM),
        ({"command": nbd.Command.WRITE_ZEROES, "length": 4096}, nbd.Errno.EPERM),
        ({"command": nbd.Command.FLUSH, "length": 1}, nbd.Errno.EINVAL),
        ({"command": 99, "length": 1}, nbd.Errno.EINVAL),
        ({"command": nbd.Command.FLUSH}, 0),
        ({"command": nbd.Command.CACHE, "length": MiB}, 0),
    ],
)
def test_each_request_is_answered_as_the_protocol_says_and_the_next_is_heard(client, request_, error):
    client.enter_in_the_old_way()
    client.ask(**request_)
    assert client.simple() == (error, 7)

    client.ask(nbd.Command.READ, 0, 1, cookie=8)
    assert client.simple() == (0, 8)


def test_a_read_of_more_than_the_limit_is_refused(tmp_path):
    with (
        serving({"": Served(100 * MiB)}, tmp_path / "s"),
        Client.unix(tmp_path / "s") as client,
    ):
        client.enter_in_the_old_way(b"")
        client.ask(nbd.Command.READ, 0, 32 * MiB + 1)
        assert client.simple() == (nbd.Errno.EOVERFLOW, 7)


# --- with clients that do not care


@given(st.binary(max_size=300))
@ANY_TIME
def test_no_rubbish_instead_of_options_harms_anybody_else(path, rubbish):
    with Client.unix(path) as client, contextlib.suppress(OSError):
        client.socket.sendall(struct.pack(">I", 3) + rubbish)
    with Client.unix(path) as client:
        assert client.enter_in_the_old_way() == SIZE


@given(st.binary(min_size=28, max_size=300))
@ANY_TIME
def test_no_rubbish_instead_of_requests_harms_anybody_else(path, rubbish):
    with Client.unix(path) as client, contextlib.suppress(OSError):
        client.enter_in_the_old_way()
        client.socket.sendall(rubbish)
    with Client.unix(path) as client:
        assert client.enter_in_the_old_way() == SIZE


@pytest.mark.parametrize(
    "send",
    [
        lambda client: client.greet(flags=8),
        lambda client: client.greet().socket.sendall(b"X" * 16),
        lambda client: client.greet().socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, 3, 2**31)),
        lambda client: client.greet().socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, 1, 4) + b"none"),
        lambda client: client.enter_in_the_old_way() and client.socket.sendall(b"X" * 28),
        lambda client: client.enter_in_the_old_way() and client.ask(nbd.Command.WRITE, 0, 2**31),
        lambda client: client.enter_in_the_old_way() and client.ask(nbd.Command.DISC),
    ],
)
def test_a_client_that_breaks_the_protocol_or_leaves_is_let_go(client, send):
    send(client)

    assert client.is_over()


def test_a_client_that_negotiates_for_ever_is_let_go(client):
    client.greet()
    for _ in range(128):
        client.option(nbd.Option.LIST)

    assert client.is_over()


def test_more_clients_than_the_limit_are_closed_and_places_become_free(path):
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(Client.unix(path)) for _ in range(MOST_CONNECTIONS)]
        for client in crowd:
            client.greet()
        with Client.unix(path) as late:
            assert late.is_over()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with Client.unix(path) as client, contextlib.suppress(EOFError, ConnectionError):
            assert client.enter_in_the_old_way() == SIZE
            return
    raise AssertionError


def test_every_disk_of_a_vm_finds_a_connection_and_who_finds_none_is_told_why(tmp_path, disk, caplog):
    path, many = tmp_path / "many", 2 * MOST_CONNECTIONS
    with serving({f"disk{number}": disk for number in range(many)}, path), contextlib.ExitStack() as stack:
        for _ in range(2 * many):
            stack.enter_context(Client.unix(path)).greet()
        for _ in range(2):
            with pytest.raises(TemporaryError, match="all of its connections may be taken"):
                NbdConnection(path, "disk0", timeout_s=10)
    assert caplog.messages == [f"all {2 * many} connections are taken: NBD clients are sent away"]


def test_clients_that_vanish_in_the_middle_of_replies_leave_no_thread(tmp_path, disk):
    before = set(threading.enumerate())
    with serving({"root": disk}, tmp_path / "s"):
        for _ in range(20):
            with Client.unix(tmp_path / "s") as client:
                client.enter_in_the_old_way()
                for number in range(8):
                    client.ask(nbd.Command.READ, 0, 4 * MiB, cookie=number)
                client.receive(1000)
        assert eventually(lambda: len({*threading.enumerate()} - before) == 1)  # who waits for clients


def test_closing_ends_clients_that_are_reading_and_waits_for_none_of_them(tmp_path, disk):
    with serving({"root": disk}, tmp_path / "s") as server, Client.unix(tmp_path / "s") as client:
        client.enter_in_the_old_way()
        for number in range(8):
            client.ask(nbd.Command.READ, 0, 4 * MiB, cookie=number)
        client.receive(1000)

        closing = threading.Thread(target=server.close)
        closing.start()
        closing.join(60)
        has_ended = not closing.is_alive()
    assert has_ended


# --- the socket


def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path, disk):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))

    with serving({"root": disk}, tmp_path / "s"), Client.unix(tmp_path / "s") as client:
        assert client.enter_in_the_old_way() == SIZE
