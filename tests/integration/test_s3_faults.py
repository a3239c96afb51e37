"""A repository in a real S3 service behind a network that fails in every way, at every request."""

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from types import SimpleNamespace

import boto3
import pytest

from vmkeep.errors import AccessError, VmkeepError
from vmkeep.repository import Repository
from vmkeep.stores import open_store
from vmkeep.stores import s3 as s3_module
from vmkeep.testing.fault_proxy import NetworkFault, fault_proxy
from vmkeep.testing.repositories import KEY, backup, contents, small_repository

pytestmark = pytest.mark.integration
DISK = {"root": bytes(range(256)) * 900, "data": b"rows" * 20_000}
ONCE = [fault for fault in NetworkFault if fault not in {NetworkFault.EXPIRED, NetworkFault.SKEWED}]
"""What passes: a client that tries again has what it wants."""
MOST = 60
"""More requests than any of these operations sends."""


@pytest.fixture
def proxy(seaweed):
    with fault_proxy(seaweed.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def options(seaweed, proxy):
    return dataclasses.replace(seaweed.options, endpoint_url=proxy.endpoint_url)


@pytest.fixture(scope="module")
def bucket(seaweed):
    """A bucket with an object: for the first one the server sets a volume aside, which takes its time."""
    name = seaweed.new_bucket()
    with contextlib.closing(open_store(f"s3://{name}", s3=seaweed.options)) as store:
        store.put_if_absent("first", b"")
    return name


@pytest.fixture
def url(bucket):
    return f"s3://{bucket}/{secrets.token_hex(4)}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch, request):
    """Wait only a second for an answer that never comes, and not at all before trying again."""
    if NetworkFault.HANGING in getattr(request.node, "callspec", SimpleNamespace(params={})).params.values():
        monkeypatch.setattr(s3_module, "_READ_TIMEOUT", 1)
    # What is slow about opening a store is that the description of S3 is read each time.
    monkeypatch.setattr(s3_module.boto3, "Session", functools.cache(boto3.Session))
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)


def reopened(url, options):
    return Repository.open(open_store(url, s3=options), KEY)


def until_none_is_left(survives, fault):
    """Let another request go wrong each time, until there are no more; return how many times that were.

    Args:
        survives: Told the number of the request and its fault; tells whether there was such a request.
    """
    # Where nothing answers, all that takes time is waiting.
    with ThreadPoolExecutor(8 if fault is NetworkFault.HANGING else 1) as pool:
        for number, there_was_one in enumerate(pool.map(survives, range(1, MOST), repeat(fault)), 1):
            if not there_was_one:
                pool.shutdown(cancel_futures=True)
                return number
    raise AssertionError(f"more than {MOST} requests")


@contextlib.contextmanager
def going_wrong(server, number, fault):
    """Reach the server by a proxy, which lets one request go wrong."""
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.fault = lambda request: fault if request.number == number else None
        yield dataclasses.replace(server.options, endpoint_url=proxy.endpoint_url), proxy.requests


@pytest.mark.parametrize("fault", ONCE)
def test_a_backup_survives_every_fault_of_any_one_request(fault, seaweed, url, tmp_path):
    """In each of several repositories another request of a backup goes wrong."""

    def survives(number, fault):
        place = f"{url}/{number}"
        small_repository(open_store(place, s3=seaweed.options))
        with going_wrong(seaweed, number, fault) as (options, requests):
            saved = attempt(lambda: save(place, options, tmp_path / str(number)))
        with contextlib.closing(reopened(place, seaweed.options)) as repository:
            (point,) = repository.points("db1")
            assert point == saved
            assert contents(repository, point) == DISK
            assert repository.check_objects() == []
        return len(requests) >= number

    assert until_none_is_left(survives, fault) > 15


def save(url, options, folder):
    with contextlib.closing(reopened(url, options)) as repository:
        return backup(repository, folder / "spool", DISK)


def attempt(action):
    """Do it, and once more when it failed with an error that a person understands."""
    try:
        return action()
    except VmkeepError:
        return action()


@pytest.mark.parametrize("fault", ONCE)
def test_a_restore_survives_every_fault_of_any_one_request(fault, seaweed, url, tmp_path):
    repository = small_repository(open_store(url, s3=seaweed.options))
    backup(repository, tmp_path / "spool", DISK)

    def survives(number, fault):
        with (
            going_wrong(seaweed, number, fault) as (options, requests),
            contextlib.closing(attempt(lambda: reopened(url, options))) as repository,
        ):
            assert attempt(lambda: contents(repository, repository.point("db1"))) == DISK
            return len(requests) >= number

    assert until_none_is_left(survives, fault) > 8


@pytest.mark.parametrize("fault", NetworkFault)
def test_a_service_that_fails_for_long_is_a_clear_error_and_is_continued(
    fault, proxy, options, url, tmp_path
):
    small_repository(open_store(url, s3=options))
    expected = AccessError if fault in {NetworkFault.EXPIRED, NetworkFault.SKEWED} else VmkeepError
    proxy.fault = lambda request: fault if request.verb == "PUT" and "/packs/" in request.path else None
    if fault in {NetworkFault.CUT, NetworkFault.FLIPPED}:  # an answer to a PUT has no body to damage
        save(url, options, tmp_path)
    else:
        with pytest.raises(expected):
            save(url, options, tmp_path)
        with contextlib.closing(reopened(url, options)) as repository:
            assert repository.points() == []
    proxy.fault = lambda _request: None

    saved = save(url, options, tmp_path)

    with contextlib.closing(reopened(url, options)) as repository:
        assert contents(repository, saved) == DISK


def test_a_wrong_clock_is_said_to_be_one(proxy, options, url):
    proxy.fault = lambda _request: NetworkFault.SKEWED

    with contextlib.closing(open_store(url, s3=options)) as store, pytest.raises(AccessError, match="clock"):
        store.put_if_absent("a", b"x")


PROGRAM = """
import functools, json, os, sys
from pathlib import Path
import boto3
from vmkeep.repository import Repository
from vmkeep.stores import S3Options, open_store
from vmkeep.testing.repositories import KEY, backup

boto3.Session = functools.cache(boto3.Session)

def opened(url, endpoint, access, secret):
    return open_store(url, s3=S3Options(endpoint, "us-east-1", access_key=access, secret_key=secret))

def work(store, verb, folder):
    with Repository.open(store, KEY) as repository:
        if verb == "collect":
            repository.collect()
        else:
            backup(repository, Path(folder), {"root": bytes(range(256)) * 900, "data": b"rows" * 20_000})

for line in sys.stdin:
    verb, folder, *where = json.loads(line)
    store = opened(*where)  # which sends no request
    child = os.fork()
    if child == 0:
        work(store, verb, folder)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Processes:
    """Starts a new process for each operation, one at a time: copies of one that has imported all."""

    def __init__(self, parent):
        self._parent = parent

    def start(self, verb, url, options, folder):
        """Begin, and return the process's id."""
        given = [verb, str(folder), url, options.endpoint_url, options.access_key, options.secret_key]
        self._parent.stdin.write(json.dumps(given) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def wait(self):
        """Return the exit code."""
        return int(self._parent.stdout.readline())


@pytest.fixture(scope="module")
def processes():
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        yield Processes(parent)


def killed_at(number, proxy, processes, *what):
    """Start an operation, and kill its process at its request *number*; tell whether it came so far."""
    process, begun = 0, threading.Event()

    def kill(request):
        assert begun.wait(60)
        if request.number == number:
            os.kill(process, signal.SIGKILL)
        return NetworkFault.REFUSED if request.number >= number else None

    proxy.requests.clear()
    proxy.fault = kill
    process = processes.start(*what)
    begun.set()
    code = processes.wait()
    proxy.fault = lambda _request: None
    assert code in {0, -signal.SIGKILL}
    return code != 0


def test_a_writer_that_is_killed_at_any_request_is_continued(proxy, options, url, processes, tmp_path):
    for number in range(1, MOST):
        place, spool = f"{url}/{number}", tmp_path / str(number)
        small_repository(open_store(place, s3=options))
        came = killed_at(number, proxy, processes, "backup", place, options, spool)
        processes.start("backup", place, options, spool)
        assert processes.wait() == 0
        with contextlib.closing(reopened(place, options)) as repository:
            points = repository.points("db1")
            assert [contents(repository, point) for point in points] == [DISK] * (1 if came else 2)
        if not came:
            break
    assert 12 < number < MOST - 1


def test_a_collector_that_is_killed_loses_nothing(proxy, options, url, processes, tmp_path):
    """At every fifth request: the store in memory, which answers at once, has them all."""
    for number in range(1, 200, 5):
        place, spool = f"{url}/{number}", tmp_path / str(number)
        repository = small_repository(open_store(place, s3=options))
        with contextlib.closing(repository):
            repository.forget(backup(repository, spool, {"root": b"old" * 70_000}), "test")
            backup(repository, spool, DISK, run="run-2")
        came = killed_at(number, proxy, processes, "collect", place, options, spool)
        with contextlib.closing(reopened(place, options)) as repository:
            repository.collect()
            assert [contents(repository, point) for point in repository.points()] == [DISK]
            assert repository.unneeded().size == 0
        if not came:
            break
    assert 50 < number < 190
