"""What the S3 store makes of answers that a real server gives rarely; a scripted server gives them always."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vmkeep.errors import AccessError, InputError, NotFoundError, TemporaryError
from vmkeep.stores import Lock, S3Options, open_store
from vmkeep.stores import s3 as s3_module
from vmkeep.stores.s3_lock import BucketLock


class Script(ThreadingHTTPServer):
    """Answers each request with the next of its answers: status, error code, body, claimed length."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        super().__init__(("127.0.0.1", 0), Scripted)


class Scripted(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        status, code, body, length = (*self.server.answers.pop(0), None, b"", None)[:4]
        body = body or b""
        if code:
            body = f"<Error><Code>{code}</Code><Message>said so</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    do_GET = do_PUT = answer  # noqa: N815  (names that http.server looks for)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(s3_module, "_ATTEMPTS", 1)
    monkeypatch.setattr(s3_module, "_CONFLICT_PAUSES", (0.0, 0.0))
    with contextlib.ExitStack() as stack:

        def start(*answers):
            server = stack.enter_context(Script(*answers))
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            options = S3Options(f"http://127.0.0.1:{server.server_port}", access_key="a", secret_key="b")
            store = open_store("s3://bucket/prod", s3=options)
            stack.callback(store.close)
            return store, server

        yield start


def test_a_put_asks_for_absence_and_does_not_hash_its_body_for_the_loopback_device(scripted):
    store, server = scripted((200,))

    assert store.put_if_absent("points/db1/1", b"x")
    ((verb, path, headers),) = server.requests
    assert (verb, path) == ("PUT", "/bucket/prod/points/db1/1")
    assert headers["If-None-Match"] == "*"
    assert "UNSIGNED-PAYLOAD" in headers["X-Amz-Content-SHA256"]


def test_a_key_that_exists_is_false(scripted):
    store, _ = scripted((412, "PreconditionFailed"))

    assert not store.put_if_absent("a", b"x")


def test_a_conflict_of_writers_is_tried_again(scripted):
    store, server = scripted((409, "ConditionalRequestConflict"), (409, "ConditionalRequestConflict"), (200,))

    assert store.put_if_absent("a", b"x")
    assert len(server.requests) == 3


def test_a_conflict_that_does_not_end_is_temporary(scripted):
    store, _ = scripted(*[(409, "ConditionalRequestConflict")] * 3)

    with pytest.raises(TemporaryError, match="ConditionalRequestConflict"):
        store.put_if_absent("a", b"x")


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "SignatureDoesNotMatch", AccessError),
        (403, "InvalidAccessKeyId", AccessError),
        (404, "NoSuchKey", NotFoundError),
        (404, "NoSuchBucket", InputError),
        (500, "InternalError", TemporaryError),
        (503, "SlowDown", TemporaryError),
    ],
)
def test_an_answer_says_what_to_do_next(scripted, status, code, error):
    store, _ = scripted((status, code))

    with pytest.raises(error, match="cannot read s3://bucket/prod/format at http"):
        store.get("format")


LISTING = b"<ListBucketResult>%b</ListBucketResult>"
LISTED = LISTING % b"<Contents><Key>prod/format</Key><Size>1</Size></Contents>"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((200, None, LISTED), AccessError),
        ((200, None, LISTING % b""), NotFoundError),
        ((403, "AccessDenied"), AccessError),
    ],
    ids=["it is there", "it is not there", "who knows"],
)
def test_what_is_denied_is_looked_up_in_the_listing(scripted, answer, error):
    store, server = scripted((403, "AccessDenied"), answer)

    with pytest.raises(error):
        store.get("format")

    assert "prefix=prod%2Fformat" in server.requests[1][1]


def test_an_object_that_is_cut_off_is_temporary(scripted):
    store, _ = scripted((200, None, b"half", 8))

    with pytest.raises(TemporaryError):
        store.get("format")


@pytest.mark.parametrize(
    ("endpoint", "private"),
    [
        (None, True),
        ("https://s3.example", True),
        ("http://127.0.0.1:9000", True),
        ("http://localhost:9000", True),
        ("http://[::1]:9000", True),
        ("http://10.0.0.1:9000", False),
        ("http://s3.example", False),
    ],
)
def test_bodies_are_hashed_for_the_signature_where_others_could_change_them(endpoint, private):
    assert s3_module._is_private(endpoint) is private


def test_a_profile_that_does_not_exist_is_an_error_of_the_fleet_file():
    with pytest.raises(InputError, match="list the profiles"):
        open_store("s3://bucket", s3=S3Options(profile="vmkeep-none"))


@pytest.mark.parametrize("code", ["NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError"])
def test_an_object_without_a_lock_is_no_error_whatever_the_service_calls_it(scripted, code):
    store, _ = scripted((404, code), (404, "NoSuchKey"))
    store._lock = BucketLock(store._client, "bucket", Lock("GOVERNANCE", 3))

    assert store.locked_until("packs/a") is None
    with pytest.raises(NotFoundError):
        store.locked_until("packs/a")


def put_headers(scripted, key):
    store, server = scripted((200,))
    store._lock = BucketLock(store._client, "bucket", Lock("COMPLIANCE", 3, ("open/",)))
    store.put_if_absent(key, b"x")
    ((_, _, headers),) = server.requests
    return {name.lower(): value for name, value in headers.items()}


def test_a_put_with_a_lock_says_until_when_and_has_a_checksum(scripted):
    locked, free = put_headers(scripted, "packs/a"), put_headers(scripted, "open/a")

    assert locked["x-amz-object-lock-mode"] == "COMPLIANCE"
    assert "x-amz-object-lock-retain-until-date" in locked
    assert any(name.startswith("x-amz-checksum-") for name in locked)  # S3 refuses it without
    assert not any("object-lock" in name for name in free)
