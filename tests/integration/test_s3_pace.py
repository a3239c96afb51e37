"""Uploads to S3 keep a limit of bandwidth; whatever way botocore sends them, what arrives is the same."""

import contextlib
import dataclasses
import random
import time

import pytest

from vmkeep.errors import AccessError
from vmkeep.stores import S3Options, open_store
from vmkeep.stores import s3 as s3_module
from vmkeep.stores.pace import Pace
from vmkeep.testing.fault_proxy import NetworkFault, fault_proxy
from vmkeep.testing.tls import loopback_certificate, tls_front
from vmkeep.units import KiB, MiB

pytestmark = pytest.mark.integration
BODY = random.Random(1).randbytes(2 * MiB)
RATE = 2 * MiB
LEAST = (len(BODY) - 64 * KiB) / RATE
"""Seconds; what is sent last need not wait for what would come behind it."""


@pytest.fixture
def url(seaweed):
    return f"s3://{seaweed.new_bucket()}/prod"


@pytest.fixture
def file(tmp_path):
    (tmp_path / "body").write_bytes(BODY)
    return tmp_path / "body"


def put(url, options, body, pace):
    """Return how many seconds a put took."""
    with contextlib.closing(open_store(url, s3=options, pace=pace)) as store:
        begun = time.monotonic()
        assert store.put_if_absent("key", body)
        took = time.monotonic() - begun
        assert store.get("key") == BODY
        return took


@pytest.mark.parametrize("signed", [False, True], ids=["bare", "signed"])
def test_a_body_is_sent_no_faster_than_that(seaweed, url, file, monkeypatch, signed):
    monkeypatch.setattr(s3_module, "_is_private", lambda _: not signed)

    assert put(url, seaweed.options, file, Pace(RATE)) >= LEAST


def test_so_it_is_from_memory(seaweed, url):
    assert put(url, seaweed.options, BODY, Pace(RATE)) >= LEAST


def test_so_it_is_by_tls(seaweed, url, file, tmp_path):
    certificate = loopback_certificate(tmp_path)
    with tls_front(seaweed.endpoint_url, certificate) as address:
        options = dataclasses.replace(
            seaweed.options, endpoint_url=address, ca_bundle=certificate.certificate
        )
        assert put(url, options, file, Pace(RATE)) >= LEAST


@pytest.mark.parametrize("fault", [NetworkFault.REFUSED, NetworkFault.SLOW_DOWN])
def test_a_body_that_is_sent_again_is_whole_and_keeps_it_again(seaweed, url, file, monkeypatch, fault):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    with fault_proxy(seaweed.endpoint_url) as proxy:
        proxy.fault = lambda request: fault if request.number == 1 else None
        options = dataclasses.replace(seaweed.options, endpoint_url=proxy.endpoint_url)

        assert put(url, options, file, Pace(RATE)) >= LEAST
        assert [request.verb for request in proxy.requests] == ["PUT", "PUT", "GET"]


def test_a_server_whose_certificate_nobody_vouches_for_is_not_used(seaweed, url, tmp_path):
    with tls_front(seaweed.endpoint_url, loopback_certificate(tmp_path)) as address:
        options = S3Options(address, access_key="a", secret_key="b")
        with (
            contextlib.closing(open_store(url, s3=options)) as store,
            pytest.raises(AccessError, match=r"certificate verify failed.*name its authority in ca_bundle"),
        ):
            store.put_if_absent("key", b"")
