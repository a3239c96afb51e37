"""A repository in a real S3 service, and what goes wrong with one."""

import contextlib
import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vmkeep.errors import AccessError, InputError, TemporaryError
from vmkeep.repository import Repository
from vmkeep.stores import S3Options, open_store
from vmkeep.stores import s3 as s3_module
from vmkeep.testing.repositories import KEY, backup, contents
from vmkeep.units import MiB

pytestmark = pytest.mark.integration
DISK = {"root": random.Random(1).randbytes(20 * MiB) + bytes(30 * MiB)}


@pytest.fixture
def url(seaweed):
    return f"s3://{seaweed.new_bucket()}/prod"


@pytest.fixture
def store(seaweed, url):
    with contextlib.closing(open_store(url, s3=seaweed.options)) as store:
        yield store


def test_a_backup_is_restored_from_s3(store, tmp_path):
    saved = backup(Repository.init(store, KEY), tmp_path / "spool", DISK)

    repository = Repository.open(store, KEY)

    assert contents(repository, repository.point("db1")) == DISK
    assert repository.verify(saved).sound
    assert repository.check_objects() == []


def test_two_writers_to_one_bucket_both_count(seaweed, url, store, tmp_path):
    Repository.init(store, KEY)

    def run(number):
        with Repository.open(open_store(url, s3=seaweed.options), KEY) as repository:
            return backup(repository, tmp_path / str(number), DISK, run=f"run-{number}").session

    with ThreadPoolExecutor(2) as pool:
        sessions = set(pool.map(run, range(2)))

    assert {point.session for point in Repository.open(store, KEY).points("db1")} == sessions


@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
def test_wrong_credentials_are_an_error_of_access(seaweed, url, wrong):
    options = dataclasses.replace(seaweed.options, **{wrong: "AKWRONG0000000000001"})

    with contextlib.closing(open_store(url, s3=options)) as store, pytest.raises(AccessError) as raised:
        store.put_if_absent("a", b"x")
    assert "check the credentials" in str(raised.value)
    assert "AKWRONG" not in str(raised.value)


def test_a_bucket_that_does_not_exist_is_an_error_of_the_fleet_file(seaweed):
    with (
        contextlib.closing(open_store("s3://vmkeep-none/x", s3=seaweed.options)) as store,
        pytest.raises(InputError, match="there is no bucket 'vmkeep-none'; create it"),
    ):
        list(store.list())


def test_a_service_that_does_not_answer_is_temporary(monkeypatch):
    monkeypatch.setattr(s3_module, "_ATTEMPTS", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    options = S3Options(address, access_key="a", secret_key="b")

    with (
        contextlib.closing(open_store("s3://bucket", s3=options)) as store,
        pytest.raises(TemporaryError, match="cannot read s3://bucket/format at http"),
    ):
        store.get("format")


class Cutting(threading.Thread):
    """Passes connections on to a server, and closes one of them after its request was carried out."""

    def __init__(self, endpoint, *, after):
        super().__init__(daemon=True)
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self.target, self.after, self.cut = (host, int(port)), after, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with client, socket.create_connection(self.target) as server:
            threading.Thread(target=self.forward, args=(client, server), daemon=True).start()
            with contextlib.suppress(OSError):
                while data := server.recv(1 << 16):
                    if data.startswith(b"HTTP/1.1 200") and self.cut < self.after:
                        self.cut += 1
                        client.shutdown(socket.SHUT_RDWR)
                        return
                    client.sendall(data)

    def forward(self, client, server):
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)


def test_a_lost_answer_is_repeated_and_the_callers_read_back(seaweed, url, store, tmp_path):
    Repository.init(store, KEY)
    proxy = Cutting(seaweed.endpoint_url, after=3)
    proxy.start()
    options = dataclasses.replace(seaweed.options, endpoint_url=proxy.endpoint)

    with Repository.open(open_store(url, s3=options), KEY) as repository:
        proxy.cut = 0
        saved = backup(repository, tmp_path / "spool", DISK)
    proxy.listener.close()

    assert proxy.cut == 3
    assert contents(Repository.open(store, KEY), saved) == DISK
    assert len(Repository.open(store, KEY).points()) == 1


PROGRAM = """
import sys
from pathlib import Path
from vmkeep.repository import Repository
from vmkeep.stores import S3Options, open_store
from vmkeep.testing.repositories import KEY, BytesDisk
url, endpoint, access, secret, folder = sys.argv[1:]
store = open_store(url, s3=S3Options(endpoint, "us-east-1", access_key=access, secret_key=secret))
session = Repository.open(store, KEY).begin(vm="db1", run="run-1", spool=Path(folder, "spool"))
session.save_disk(BytesDisk(Path(folder, "disk").read_bytes()))
"""


def test_a_process_that_is_killed_while_it_uploads_in_the_background_is_continued(
    seaweed, url, store, tmp_path
):
    Repository.init(store, KEY)
    content = random.Random(5).randbytes(4 * MiB) * 2 + random.Random(6).randbytes(200 * MiB)
    (tmp_path / "disk").write_bytes(content)
    options = seaweed.options
    arguments = [url, options.endpoint_url, options.access_key, options.secret_key, str(tmp_path)]

    with subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments]) as process:
        while process.poll() is None and not list(store.list("packs/")):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    before = {info.key for info in store.list("packs/")}

    with Repository.open(store, KEY) as repository:
        saved = backup(repository, tmp_path / "spool", {"root": content})
        assert before
        assert saved.stats.new < len(content) - 40 * MiB
        assert contents(repository, saved) == {"root": content}
        assert repository.check_objects() == []
