"""Our NBD server, asked by our client and by clients that know no manners."""

import contextlib
import os
import random
import socket
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmkeep.disks import nbd_protocol as nbd
from vmkeep.disks.nbd_device import NbdDevice
from vmkeep.disks.nbd_negotiation import receive
from vmkeep.disks.nbd_server import serving
from vmkeep.errors import InputError, SourceError, TemporaryError
from vmkeep.testing.repositories import CHUNK, LEAF, BytesDisk

HOLES = bytes(CHUNK * LEAF)
CONTENT = os.urandom(3 * CHUNK) + HOLES + os.urandom(CHUNK) + bytes(5 * CHUNK) + os.urandom(CHUNK + 512)
BAD = 2 * CHUNK


class Disk(BytesDisk):
    """Bytes that can be served; reading the last byte fails."""

    def extents_within(self, start, length):
        for extent in self.extents():
            first, end = max(start, extent.start), min(start + length, extent.end)
            if first < end:
                yield type(extent)(first, end - first)

    def read_into(self, offset, buffer):
        if offset + len(buffer) == self.size:
            raise SourceError("the last byte cannot be read")
        super().read_into(offset, buffer)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("nbd") / "socket"
    with serving({"root": Disk(CONTENT), "": Disk(b"x" * 1024)}, path):
        yield path


@pytest.fixture
def device(path):
    with NbdDevice(path, "root") as device:
        yield device


def read(device, offset, length):
    data = bytearray(length)
    device.read_into(offset, memoryview(data))
    return bytes(data)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_range_is_what_the_disk_holds(path, data):
    offset = data.draw(st.integers(0, len(CONTENT) - 2))
    length = data.draw(st.integers(1, len(CONTENT) - 1 - offset))

    with NbdDevice(path, "root") as device:
        assert read(device, offset, length) == CONTENT[offset : offset + length]


def test_holes_are_told(device):
    assert list(device.extents()) == list(Disk(CONTENT).extents())


def test_an_error_of_the_disk_reaches_the_client_and_the_connection_goes_on(device):
    with pytest.raises(SourceError, match="the last byte cannot be read"):
        read(device, len(CONTENT) - 10, 10)
    assert read(device, 0, 10) == CONTENT[:10]


def test_an_export_that_is_not_there_is_refused(path):
    with pytest.raises(SourceError, match="does not have this export"):
        NbdDevice(path, "rot")


def test_many_clients_read_at_once(path):
    wrong = []

    def client(seed):
        draw = random.Random(seed)
        with NbdDevice(path, "root") as device:
            for _ in range(40):
                offset = draw.randrange(len(CONTENT) - 2)
                length = draw.randrange(1, min(3 * CHUNK, len(CONTENT) - 1 - offset) + 1)
                if read(device, offset, length) != CONTENT[offset : offset + length]:
                    wrong.append(offset)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def raw(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(path))
    assert receive(connection, nbd.GREETING.size)[:8] == nbd.MAGIC
    connection.sendall(struct.pack(">I", nbd.Handshake.FIXED_NEWSTYLE | nbd.Handshake.NO_ZEROES))
    return connection


def entered(path):
    """Return a connection in the oldest way: without structured replies."""
    connection = raw(path)
    connection.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.Option.EXPORT_NAME, 4) + b"root")
    assert struct.unpack(">QH", receive(connection, 10))[0] == len(CONTENT)
    return connection


def ask(connection, command, offset=0, length=0, payload=b""):
    connection.sendall(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, command, 7, offset, length) + payload)
    magic, error, cookie = nbd.SIMPLE.unpack(receive(connection, nbd.SIMPLE.size))
    assert (magic, cookie) == (nbd.SIMPLE_MAGIC, 7)
    return error


@pytest.mark.parametrize(
    ("command", "offset", "length", "payload", "error"),
    [
        (nbd.Command.WRITE, 0, 512, bytes(512), nbd.Errno.EPERM),
        (nbd.Command.TRIM, 0, 512, b"", nbd.Errno.EPERM),
        (nbd.Command.READ, len(CONTENT), 1, b"", nbd.Errno.EINVAL),
        (nbd.Command.READ, 2**63, 2**32 - 1, b"", nbd.Errno.EINVAL),
        (nbd.Command.BLOCK_STATUS, 0, 512, b"", nbd.Errno.EINVAL),
        (99, 0, 0, b"", nbd.Errno.EINVAL),
        (nbd.Command.FLUSH, 0, 0, b"", 0),
        (nbd.Command.CACHE, 0, 4096, b"", 0),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_connection_goes_on(  # noqa: PLR0917  (pytest names them)
    path, command, offset, length, payload, error
):
    with entered(path) as connection:
        assert ask(connection, command, offset, length, payload) == error
        assert ask(connection, nbd.Command.READ, 0, 5) == 0
        assert receive(connection, 5) == CONTENT[:5]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 4,
        nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.Option.GO, 2**31),
        nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.Option.GO, 4) + struct.pack(">I", 2**32 - 1),
        nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.Option.SET_META_CONTEXT, 12) + b"\0\0\0\0\xff\xff\xff\xff....",
        nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.Option.EXPORT_NAME, 4) + b"root" + bytes(64),
        os.urandom(200),
    ],
)
def test_rubbish_harms_nobody_else(path, device, rubbish):
    with contextlib.suppress(OSError), raw(path) as connection:
        connection.sendall(rubbish)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass

    assert read(device, 0, 100) == CONTENT[:100]


def test_a_client_that_vanishes_in_the_middle_is_let_go(tmp_path):
    with serving({"root": Disk(CONTENT)}, tmp_path / "s") as server:
        connection = entered(tmp_path / "s")
        for _ in range(50):
            connection.sendall(
                nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.Command.READ, 1, 0, len(CONTENT) - 1)
            )
        connection.close()
        with NbdDevice(tmp_path / "s", "root") as device:
            assert read(device, 5, 5) == CONTENT[5:10]

    assert server.connections == 0


def test_the_exports_are_listed(path):
    with raw(path) as connection:
        connection.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.Option.LIST, 0))
        names = []
        while True:
            *_, kind, length = nbd.OPTION_REPLY.unpack(receive(connection, nbd.OPTION_REPLY.size))
            data = receive(connection, length)
            if kind == nbd.Reply.ACK:
                break
            names.append(data[4:])
    assert names == [b"root", b""]


def test_a_server_that_ends_leaves_no_socket_and_no_clients(tmp_path):
    with serving({"root": Disk(CONTENT)}, tmp_path / "s"):
        device = NbdDevice(tmp_path / "s", "root")

    assert not (tmp_path / "s").exists()
    with device, pytest.raises((SourceError, TemporaryError)):
        read(device, 0, 5)


def test_a_socket_is_for_its_owner_only(path):
    assert path.stat().st_mode & 0o077 == 0


def test_an_address_that_is_taken_is_a_clear_error(path):
    with pytest.raises(InputError, match="cannot serve NBD at"), serving({}, path):
        pass


@pytest.mark.parametrize("name", ["nbd-client", "nbd-read"])
def test_a_system_without_another_thread_serves_those_it_can_and_goes_on(tmp_path, monkeypatch, name):
    start, refused = threading.Thread.start, []

    def limited(thread):
        if thread.name == name and len(refused) < 2:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    with serving({"root": Disk(CONTENT)}, tmp_path / "socket") as server:
        monkeypatch.setattr(threading.Thread, "start", limited)
        for _ in range(3):
            with contextlib.suppress(TemporaryError), NbdDevice(tmp_path / "socket", "root") as device:
                assert read(device, 0, 10) == CONTENT[:10]
                assert read(device, 0, 10) == CONTENT[:10]
                served = server.connections
        assert (len(refused), served) == (2, 1)
