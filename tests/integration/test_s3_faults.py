"""A repository in a real S3 service behind a network that fails in every way, at every request."""

import contextlib
import dataclasses
import os
import secrets
import signal
import subprocess
import sys

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
def impatient(monkeypatch):
    """Wait for an answer no longer than a second, and not at all before trying again."""
    monkeypatch.setattr(s3_module, "_READ_TIMEOUT", 1)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)


def reopened(url, options):
    return Repository.open(open_store(url, s3=options), KEY)


def once(number, fault):
    return lambda request: fault if request.number == number else None


@pytest.mark.parametrize("fault", ONCE)
def test_a_backup_survives_every_fault_of_any_one_request(fault, proxy, options, url, tmp_path):
    """In each of several repositories another request of a backup goes wrong, until there are no more."""
    for number in range(1, MOST):
        place = f"{url}/{number}"
        small_repository(open_store(place, s3=options))
        proxy.requests.clear()
        proxy.fault = once(number, fault)
        saved = attempt(lambda place=place, number=number: save(place, options, tmp_path / str(number)))
        proxy.fault = once(0, fault)
        done = len(proxy.requests) < number
        with contextlib.closing(reopened(place, options)) as repository:
            (point,) = repository.points("db1")
            assert point == saved
            assert contents(repository, point) == DISK
            assert repository.check_objects() == []
        if done:
            break
    assert 15 < number < MOST - 1


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
def test_a_restore_survives_every_fault_of_any_one_request(fault, proxy, options, url, tmp_path):
    repository = small_repository(open_store(url, s3=options))
    backup(repository, tmp_path / "spool", DISK)
    for number in range(1, MOST):
        proxy.requests.clear()
        proxy.fault = once(number, fault)
        with contextlib.closing(attempt(lambda: reopened(url, options))) as repository:
            found = attempt(lambda repository=repository: contents(repository, repository.point("db1")))
        assert found == DISK
        if len(proxy.requests) < number:
            break
    assert 8 < number < MOST - 1


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
import sys
from pathlib import Path
from vmkeep.repository import Repository
from vmkeep.stores import S3Options, open_store
from vmkeep.testing.repositories import KEY, backup
_, verb, url, endpoint, access, secret, folder = sys.argv
options = S3Options(endpoint, "us-east-1", access_key=access, secret_key=secret)
with Repository.open(open_store(url, s3=options), KEY) as repository:
    if verb == "collect":
        repository.collect()
    else:
        backup(repository, Path(folder), {"root": bytes(range(256)) * 900, "data": b"rows" * 20_000})
"""


def started(verb, url, options, folder):
    keys = (options.access_key, options.secret_key)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, verb, url, options.endpoint_url, *keys, folder],
        stderr=subprocess.DEVNULL,
    )


def killed_at(number, proxy, start, *where):
    """Start a process, and kill it at its request *number*; tell whether it came so far."""
    proxy.requests.clear()
    process = start(*where)

    def kill(request):
        if request.number == number:
            os.kill(process.pid, signal.SIGKILL)
        return NetworkFault.REFUSED if request.number >= number else None

    proxy.fault = kill
    code = process.wait(60)
    proxy.fault = lambda _request: None
    assert code in {0, -signal.SIGKILL}
    return code != 0


def test_a_writer_that_is_killed_at_any_request_is_continued(proxy, options, url, tmp_path):
    for number in range(1, MOST):
        place, spool = f"{url}/{number}", tmp_path / str(number)
        small_repository(open_store(place, s3=options))
        came = killed_at(number, proxy, lambda *it: started("backup", *it), place, options, spool)
        code = started("backup", place, options, spool).wait(60)
        with contextlib.closing(reopened(place, options)) as repository:
            points = repository.points("db1")
            assert [contents(repository, point) for point in points] == [DISK] * len(points)
            assert code == 0
            assert len(points) == (1 if came else 2)
        if not came:
            break
    assert 12 < number < MOST - 1


def test_a_collector_that_is_killed_loses_nothing(proxy, options, url, tmp_path):
    """At every fifth request: the store in memory, which answers at once, has them all."""
    for number in range(1, 200, 5):
        place, spool = f"{url}/{number}", tmp_path / str(number)
        repository = small_repository(open_store(place, s3=options))
        with contextlib.closing(repository):
            repository.forget(backup(repository, spool, {"root": b"old" * 70_000}), "test")
            backup(repository, spool, DISK, run="run-2")
        came = killed_at(number, proxy, lambda *it: started("collect", *it), place, options, spool)
        with contextlib.closing(reopened(place, options)) as repository:
            repository.collect()
            assert [contents(repository, point) for point in repository.points()] == [DISK]
            assert repository.unneeded().size == 0
        if not came:
            break
    assert 50 < number < 190
