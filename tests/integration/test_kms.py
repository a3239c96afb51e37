"""Key slots that a key of AWS KMS opens, with moto's KMS server, and with answers that it never gives."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vmkeep.cli import main
from vmkeep.errors import AccessError, InputError, TemporaryError
from vmkeep.repository import Repository, Secret, list_slots
from vmkeep.repository import kms as kms_module
from vmkeep.repository.kms import KmsKey, KmsOptions
from vmkeep.stores import MemoryStore
from vmkeep.testing.kms import CREDENTIALS, REGION, kms_server
from vmkeep.testing.repositories import KEY, backup, contents, small_repository

pytestmark = pytest.mark.integration

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.fixture(scope="module")
def kms():
    with kms_server() as server:
        yield server


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def test_a_key_of_kms_opens_what_it_made(kms, tmp_path):
    store, arn = MemoryStore(), kms.new_key()
    made = small_repository(store, KmsKey(arn, kms.options))
    saved = backup(made, tmp_path / "s", {"root": b"x" * 9000})

    opened = Repository.open(store, KmsKey(arn, kms.options))

    assert contents(opened, saved) == {"root": b"x" * 9000}
    (slot,) = list_slots(store)
    assert (slot.kind, slot.service_key) == ("kms", arn)


def test_neither_the_master_key_nor_the_data_key_lies_in_the_store(kms, monkeypatch):
    seen = []
    ask = KmsKey._ask

    def spy(self, call, verb):
        answer = ask(self, call, verb)
        seen.append(answer["Plaintext"])
        return answer

    monkeypatch.setattr(KmsKey, "_ask", spy)
    store = MemoryStore()
    repository = small_repository(store, KmsKey(kms.new_key(), kms.options))

    for secret in (*seen, repository.keys.newest.pack, *repository.keys.masters):
        assert len(secret) == 32
        assert not any(secret in store.get(info.key) for info in store.list())
        assert not any(secret.hex().encode() in store.get(info.key) for info in store.list())


def test_another_key_of_kms_is_refused(kms):
    store = MemoryStore()
    small_repository(store, KmsKey(kms.new_key(), kms.options))

    with pytest.raises(AccessError, match="slot 'default', which was wrapped by arn:aws:kms"):
        Repository.open(store, KmsKey(kms.new_key(), kms.options))


def test_the_slot_of_another_repository_is_refused_by_kms_itself(kms):
    key = KmsKey(kms.new_key(), kms.options)
    data_key, wrapped, _ = key.new_key(b"a" * 16)

    assert key.open_key(wrapped, b"a" * 16) == data_key
    with pytest.raises(AccessError, match=r"wrong key: .*InvalidCiphertext.*for another repository"):
        key.open_key(wrapped, b"b" * 16)


def test_an_alias_names_the_key(kms):
    store = MemoryStore()
    arn = kms.new_key("alias/vmkeep")
    options = KmsOptions(kms.endpoint_url, REGION)
    small_repository(store, KmsKey("alias/vmkeep", options))

    Repository.open(store, KmsKey(arn, kms.options))
    Repository.open(store, KmsKey(arn.rpartition(":")[0] + ":alias/vmkeep", kms.options))


def test_a_lost_key_of_kms_is_no_disaster(kms, tmp_path):
    store = MemoryStore()
    repository = small_repository(store, KmsKey(kms.new_key(), kms.options))
    repository.access.add_slot("paper", Secret.passphrase("in the safe"))
    saved = backup(repository, tmp_path / "s", {"root": b"x"})

    opened = Repository.open(store, Secret.passphrase("in the safe"))

    assert contents(opened, saved) == {"root": b"x"}
    assert opened.access.remove_slot("default", Secret.passphrase("in the safe")) == "paper"


def test_a_slot_of_kms_is_added_and_takes_over_from_a_key_file(kms):
    store, key = MemoryStore(), KmsKey(kms.new_key(), kms.options)
    repository = small_repository(store)
    repository.access.add_slot("cloud", key)

    assert repository.access.remove_slot("default", key) == "cloud"

    assert Repository.open(store, key).keys == repository.keys
    with pytest.raises(AccessError, match="slot 'cloud' of the repository opens with AWS KMS"):
        Repository.open(store, KEY)


def test_a_key_of_kms_is_not_asked_about_slots_of_other_kinds(kms):
    store = MemoryStore()
    small_repository(store)

    class Silent(KmsKey):
        def open_key(self, *_):
            raise AssertionError

    with pytest.raises(AccessError, match="opens with a key file, not with what was given"):
        Repository.open(store, Silent(ARN, kms.options))


def test_nothing_says_where_the_key_is():
    with pytest.raises(InputError, match="in which region the KMS key alias/vmkeep is"):
        KmsKey("alias/vmkeep")


def test_without_credentials_that_is_said(kms, monkeypatch):
    for name in CREDENTIALS:
        monkeypatch.delenv(name)

    with pytest.raises(AccessError, match="no credentials were found"):
        KmsKey(ARN, kms.options).new_key(b"a" * 16)


def test_a_profile_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="aws configure list-profiles"):
        KmsKey(ARN, KmsOptions(profile="none"))


def test_a_server_that_is_away_is_temporary(monkeypatch):
    monkeypatch.setattr(kms_module, "_ATTEMPTS", 1)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"

    with pytest.raises(TemporaryError, match="Could not connect"):
        KmsKey(ARN, KmsOptions(endpoint)).open_key(b"wrapped", b"a" * 16)


class Refusing(BaseHTTPRequestHandler):
    """Answers with the server's next error, and with an empty data key when there is none left."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests += 1
        code = self.server.errors.pop(0) if self.server.errors else None
        body = {"__type": code, "message": "said so"} if code else {"Plaintext": "AAAA"}
        self.send_response(400 if code else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def refusing():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Refusing))
        stack.callback(server.shutdown)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.requests = 0

        def start(*errors):
            server.errors = list(errors)
            return KmsKey(ARN, KmsOptions(f"http://127.0.0.1:{server.server_port}")), server

        yield start


@pytest.mark.parametrize(
    ("code", "error", "advice"),
    [
        ("AccessDeniedException", AccessError, "kms:Decrypt"),
        ("ExpiredTokenException", AccessError, "check the credentials"),
        ("DisabledException", AccessError, "enable the key"),
        ("KMSInvalidStateException", AccessError, "cancel its deletion"),
        ("IncorrectKeyException", AccessError, "another KMS key"),
        ("NotFoundException", InputError, "check the key's ARN and region"),
    ],
)
def test_a_refusal_says_what_to_do_and_is_not_repeated(refusing, code, error, advice):
    key, server = refusing(code)

    with pytest.raises(error, match=f"the KMS key {ARN} in eu-central-1: {code}: said so; .*{advice}"):
        key.open_key(b"wrapped", b"a" * 16)
    assert server.requests == 1


def test_a_service_that_is_busy_is_asked_again(refusing, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # botocore's pauses
    key, server = refusing("ThrottlingException", "ThrottlingException")

    assert key.open_key(b"wrapped", b"a" * 16) == b"\0\0\0"
    assert server.requests == 3


def test_a_service_that_stays_busy_is_temporary(refusing, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    key, server = refusing(*["ThrottlingException"] * 9)

    with pytest.raises(TemporaryError, match="ThrottlingException: said so"):
        key.open_key(b"wrapped", b"a" * 16)
    assert server.requests == kms_module._ATTEMPTS


def test_a_fleet_backs_up_restores_and_is_rescued_with_a_key_of_kms(kms, site, monkeypatch, capfd):
    monkeypatch.chdir(site.folder)
    arn = kms.new_key()
    fleet = site.folder / "fleet.yaml"
    here = f'kms: {{endpoint_url: "{kms.endpoint_url}"}}'
    text = fleet.read_text().replace("key: {file: ./key}", f"{here}, key: {{file: ./key}}")
    fleet.write_text(text)
    assert main(["key", "add", "cloud", "--kms", arn]) == 0
    fleet.write_text(text.replace("key: {file: ./key}", f'key: {{kms: "{arn}"}}'))
    (site.folder / "key").unlink()

    assert main(["key", "check"]) == 0
    assert main(["backup", "--direct"]) == 0
    assert main(["restore", "--direct", "--overwrite"]) == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", kms.endpoint_url)
    capfd.readouterr()
    assert main(["rescue", str(site.folder / "repository"), "--kms", arn, "list", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)
