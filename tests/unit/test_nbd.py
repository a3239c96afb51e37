"""The NBD client against servers that behave, misbehave, and vanish; all real sockets."""

# ruff: noqa: ARG001, ARG002, ARG005  (a server that breaks one thing takes the arguments of one that does not)

import contextlib
import socket
import struct
import threading
import tracemalloc

import pytest

from vmkeep.disks.device import Extent
from vmkeep.disks.nbd import NbdConnection, data_extents
from vmkeep.disks.nbd_device import NbdDevice
from vmkeep.errors import SourceError, TemporaryError
from vmkeep.units import MiB

SIZE = 4 * MiB
DATA = bytes(range(256)) * (SIZE // 256)


def receive(connection, length):
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


def option_reply(option, kind, body=b""):
    return struct.pack(">QIII", 0x0003E889045565A9, option, kind, len(body)) + body


def chunk(cookie, kind, body, *, done=True):
    return struct.pack(">IHHQI", 0x668E33EF, int(done), kind, cookie, len(body)) + body


class Server:
    """A small server of one disk; subclasses break one thing."""

    greeting = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.threads.append(threading.Thread(target=self.serve, args=(connection,)))
                self.threads[-1].start()

    def serve(self, connection):
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            connection.sendall(self.greeting)
            receive(connection, 4)
            while self.negotiate(connection, *struct.unpack(">8sII", receive(connection, 16))[1:]):
                pass
            while True:
                _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", receive(connection, 28))
                if command == 2:
                    return
                payload = receive(connection, length) if command == 1 else b""
                connection.sendall(self.answer(command, cookie, offset, length, payload))

    def negotiate(self, connection, option, length):
        receive(connection, length)
        if option == 10:
            connection.sendall(option_reply(option, 4, struct.pack(">I", 1) + b"base:allocation"))
        if option == 7:
            connection.sendall(option_reply(option, 3, struct.pack(">HQH", 0, SIZE, 1 | 4 | 64)))
        connection.sendall(option_reply(option, 1))
        return option != 7

    def answer(self, command, cookie, offset, length, payload):
        if command == 0:
            return self.read(cookie, offset, length)
        if command == 7:
            return chunk(cookie, 5, struct.pack(">I", 1) + self.status(offset, length))
        return chunk(cookie, 0, b"")

    def read(self, cookie, offset, length):
        return chunk(cookie, 1, struct.pack(">Q", offset) + DATA[offset : offset + length])

    def status(self, offset, length):
        return struct.pack(">II", length, 0)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(kind=Server, **changes):
        path = tmp_path / f"nbd{len(servers)}"
        servers.append(type("Changed", (kind,), changes)(path))
        return path

    yield start
    for server in servers:
        server.close()


def connect(path):
    return contextlib.closing(NbdConnection(path, "disk", timeout_s=1))


def read(connection, offset=0, length=100):
    buffer = bytearray(length)
    connection.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def test_a_long_read_is_put_together_from_its_parts(serve):
    with connect(serve()) as connection:
        assert read(connection, 5, 3 * MiB) == DATA[5 : 5 + 3 * MiB]


def test_chunks_in_any_order_and_holes_are_put_in_place(serve):
    def pieces(self, cookie, offset, length):
        half = length // 2
        return chunk(cookie, 2, struct.pack(">QI", offset + half, length - half), done=False) + chunk(
            cookie, 1, struct.pack(">Q", offset) + DATA[offset : offset + half]
        )

    with connect(serve(read=pieces)) as connection:
        assert read(connection, 0, 100) == DATA[:50] + bytes(50)


def test_extents_are_merged_cut_and_without_zeros(serve):
    def status(self, offset, length):
        # Two of data, one of zeros, one that is longer than what was asked for.
        return struct.pack(">8I", 4096, 0, 4096, 0, 8192, 3, 1 << 30, 0)

    with connect(serve(status=status)) as connection:
        assert list(data_extents(connection, SIZE)) == [Extent(0, 8192), Extent(16384, SIZE - 16384)]


def test_a_server_that_answers_in_small_steps_is_asked_again(serve):
    with connect(serve(status=lambda self, offset, length: struct.pack(">II", 65536, 0))) as connection:
        assert list(data_extents(connection, SIZE)) == [Extent(0, SIZE)]


def test_a_server_that_knows_no_holes_has_one_extent(serve):
    def negotiate(self, connection, option, length):
        if option != 10:
            return Server.negotiate(self, connection, option, length)
        receive(connection, length)
        connection.sendall(option_reply(option, (1 << 31) | 1))
        return True

    with connect(serve(negotiate=negotiate)) as connection:
        assert list(data_extents(connection, SIZE)) == [Extent(0, SIZE)]


def test_an_error_of_the_server_is_told_with_its_words(serve):
    def failing(self, cookie, offset, length):
        return chunk(cookie, (1 << 15) | 1, struct.pack(">IH", 5, 8) + b"bad disk")

    with (
        connect(serve(read=failing)) as connection,
        pytest.raises(SourceError, match=r"bad disk.*Input/output"),
    ):
        read(connection)


def test_a_simple_error_reply_is_told(serve):
    def failing(self, cookie, offset, length):
        return struct.pack(">IIQ", 0x67446698, 28, cookie)

    with connect(serve(read=failing)) as connection, pytest.raises(SourceError, match="No space left"):
        read(connection)


BREACHES = {
    "left out": lambda self, cookie, offset, length: chunk(cookie, 0, b""),
    "not asked for": lambda self, cookie, offset, length: chunk(
        cookie, 1, struct.pack(">Q", offset + 1) + DATA[:length]
    ),
    "was not sent": lambda self, cookie, offset, length: chunk(cookie + 7, 0, b""),
    "where a reply should begin": lambda self, cookie, offset, length: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "reply type 32767": lambda self, cookie, offset, length: struct.pack(">IIQ", 0x67446698, 0, cookie),
    "reply type 9": lambda self, cookie, offset, length: chunk(cookie, 9, b"what?"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_server_that_breaks_the_protocol_is_told_how(serve, breach):
    with connect(serve(read=BREACHES[breach])) as connection, pytest.raises(SourceError, match=breach):
        read(connection)


def test_data_twice_for_one_range_is_a_breach(serve):
    def twice(self, cookie, offset, length):
        part = struct.pack(">Q", offset) + DATA[offset : offset + length]
        return chunk(cookie, 1, part, done=False) + chunk(cookie, 1, part)

    with connect(serve(read=twice)) as connection, pytest.raises(SourceError, match="not asked for"):
        read(connection)


def test_a_status_of_nothing_is_a_breach_and_not_an_endless_loop(serve):
    with (
        connect(serve(status=lambda self, offset, length: struct.pack(">II", 0, 0))) as connection,
        pytest.raises(SourceError, match="with nothing"),
    ):
        list(data_extents(connection, SIZE))


@pytest.mark.parametrize("kind", [0, 1])
def test_an_answer_that_would_take_gigabytes_is_a_breach_before_it_is_received(serve, kind):
    def answer(self, command, cookie, *_range):
        return struct.pack(">IHHQI", 0x668E33EF, 1, kind, cookie, 0xFFFF_FFFF)

    tracemalloc.start()
    try:
        with connect(serve(answer=answer)) as connection, pytest.raises(SourceError, match="breaks the"):
            connection.write(0, memoryview(b"x"))
        assert tracemalloc.get_traced_memory()[1] < 64 * MiB
    finally:
        tracemalloc.stop()


def test_replies_to_an_option_without_end_are_a_breach(serve):
    def negotiate(self, connection, option, length):
        receive(connection, length)
        while True:
            connection.sendall(option_reply(option, 3, bytes(12)))

    with pytest.raises(SourceError, match="more than 64 times"), connect(serve(negotiate=negotiate)):
        pass


ENDLESS = {
    "empty": chunk(0, 0, b"", done=False),
    "data of no bytes": chunk(0, 1, struct.pack(">Q", 0), done=False),
    "holes of no bytes": chunk(0, 2, struct.pack(">QI", 0, 0), done=False),
    "status": chunk(0, 5, struct.pack(">III", 1, MiB, 0), done=False),
    "status of nothing": chunk(0, 5, struct.pack(">III", 1, 0, 0), done=False),
}


@pytest.mark.parametrize("part", ENDLESS)
@pytest.mark.parametrize("ask", [read, lambda one: one.status(0, MiB), lambda one: one.flush()])
def test_a_reply_without_end_that_brings_nothing_is_a_breach(serve, ask, part):
    def serve_for_ever(self, command, cookie, *_range):
        head, body = ENDLESS[part][:8], ENDLESS[part][16:]
        return (head + struct.pack(">Q", cookie) + body) * 10_000

    path = serve(answer=serve_for_ever)
    with connect(path) as connection, pytest.raises(SourceError, match="breaks the protocol"):
        ask(connection)


def test_a_status_in_two_chunks_of_which_the_last_is_empty_is_understood(serve):
    def answer(self, command, cookie, *_range):
        return chunk(cookie, 5, struct.pack(">III", 1, MiB, 0), done=False) + chunk(cookie, 0, b"")

    with connect(serve(answer=answer)) as connection:
        assert connection.status(0, MiB) == [(Extent(0, MiB), True)]


def test_something_that_is_no_nbd_server_is_refused(serve):
    path = serve(greeting=b"220 mail.example ESMTP ready\r\n")

    with pytest.raises(SourceError, match="expected fixed newstyle"):
        NbdConnection(path, "disk", timeout_s=1)


def test_a_server_that_does_not_answer_is_temporary(serve):
    with (
        connect(serve(read=lambda self, cookie, offset, length: b"")) as connection,
        pytest.raises(TemporaryError, match="timed out"),
    ):
        read(connection)


def test_a_server_that_is_not_there_is_temporary(tmp_path):
    with pytest.raises(TemporaryError, match="cannot connect"):
        NbdConnection(tmp_path / "nothing", "disk", timeout_s=1)


def test_an_export_that_is_not_there_is_refused(serve):
    def negotiate(self, connection, option, length):
        if option != 7:
            return Server.negotiate(self, connection, option, length)
        receive(connection, length)
        connection.sendall(option_reply(option, (1 << 31) | 6))
        return False

    with pytest.raises(SourceError, match="does not have this export"):
        NbdConnection(serve(negotiate=negotiate), "disk", timeout_s=1)


def test_a_device_goes_on_with_a_new_connection_after_an_error(serve):
    answers = iter([BREACHES["left out"], Server.read])

    def one_after_the_other(self, *request):
        return next(answers)(self, *request)

    with NbdDevice(serve(read=one_after_the_other), "disk") as device:
        with pytest.raises(SourceError):
            read(device)
        assert read(device) == DATA[:100]
