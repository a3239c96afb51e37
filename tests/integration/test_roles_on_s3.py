"""Whole runs on a real S3 service, each with exactly the rights of its role."""

import hashlib
import json
from contextlib import suppress

import pytest

from vmkeep.cli import main
from vmkeep.errors import AccessError, NotFoundError, TemporaryError
from vmkeep.operations import repositories
from vmkeep.repository import Repository
from vmkeep.stores import open_store
from vmkeep.testing.faults import Fault, FaultyStore, on
from vmkeep.testing.repositories import contents, point, save
from vmkeep.testing.seaweed import USERS, principal
from vmkeep.testing.site import FLEET, Site

pytestmark = pytest.mark.integration


class Roles(Site):
    """A fleet whose repository is in a bucket, made by an administrator; its bucket has the policies."""

    def __init__(self, folder, seaweed):
        self.bucket, self.seaweed = seaweed.new_bucket(), seaweed
        folder.mkdir()
        self.credentials = folder / "s3"
        self.write_credentials(seaweed.options)
        s3 = f'{{endpoint_url: "{seaweed.endpoint_url}", region: us-east-1, credentials: {{file: ./s3}}}}'
        super().__init__(
            folder, text=FLEET.replace("store: ./repository", f"store: s3://{self.bucket}/prod, s3: {s3}")
        )

    def write_credentials(self, options):
        self.credentials.write_text(f"{options.access_key}:{options.secret_key}\n")

    def become(self, user):
        self.write_credentials(self.seaweed.options_of(user))

    def store(self, user=None):
        options = self.seaweed.options_of(user) if user else self.seaweed.options
        return open_store(f"s3://{self.bucket}/prod", s3=options)


@pytest.fixture
def roles(tmp_path, monkeypatch, seaweed, capfd):
    """The fleet, with the policies that `vmkeep policy` prints for the three roles."""
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    roles = Roles(tmp_path / "site", seaweed)
    statements = []
    for user in USERS:
        capfd.readouterr()
        command = ["policy", "--role", user, "-f", str(roles.path), "--principal", principal(user)]
        # SeaweedFS does not know the condition on puts: see docs/security.md.
        assert main([*command, "--allow-overwriting"]) == 0
        statements += json.loads(capfd.readouterr().out)["Statement"]
    seaweed.set_policy(roles.bucket, {"Version": "2012-10-17", "Statement": statements})
    return roles


def keys(roles, prefix):
    return [info.key for info in roles.store().list(prefix)]


def test_a_writer_backs_up_and_a_restorer_restores(roles):
    before = roles.digest("db1"), roles.digest("app1")
    roles.become("writer")
    assert roles.run("backup").exit_code == 0
    roles.write("db1", "data", seed="later")
    assert roles.run("backup").exit_code == 0
    roles.write("db1", seed="destroyed")
    roles.image("app1").unlink()
    roles.become("restorer")

    assert roles.run("restore", overwrite=True).exit_code == 0
    assert roles.run("verify").exit_code == 0

    assert (roles.digest("db1"), roles.digest("app1")) == before


def test_a_writer_says_that_it_did_not_read_back(roles):
    roles.become("writer")

    report = roles.run("backup")

    assert "NOT read back" in report.steps["verify db1"].text


def test_a_failed_run_of_a_writer_is_continued(roles, monkeypatch):
    roles.become("writer")
    with monkeypatch.context() as broken:
        broken.setattr("vmkeep.repository.session.Session.seal", _interrupted)
        first = roles.run("backup")
    assert first.exit_code != 0

    assert roles.run("backup", resume=first.run).exit_code == 0


def _interrupted(*_):
    raise NotFoundError("the process ended here")


def test_a_lost_answer_costs_a_writer_nothing(roles, tmp_path):
    faulty = FaultyStore(roles.store("writer"), on("put", "packs/", Fault.LOST))
    writer = Repository.open(faulty, repositories.secret_of(roles.file))
    content = {"root": b"r" * 50_000}

    with writer.begin(vm="db1", run="run-1", spool=tmp_path / "spool") as session:
        save(session, content)
        with suppress(TemporaryError):  # the background may have tried again already
            session.upload()
        session.upload()
        saved = session.seal(point(session.recorded()))

    with repositories.open_repository(roles.file) as repository:
        assert contents(repository, saved) == content


def test_a_writer_can_neither_delete_nor_read_a_pack(roles):
    roles.become("writer")
    roles.run("backup")
    store, (pack, *_) = roles.store("writer"), keys(roles, "packs/")

    with pytest.raises(AccessError):
        store.delete(pack)
    with pytest.raises(AccessError):
        store.get(pack)

    assert pack in keys(roles, "packs/")


@pytest.mark.parametrize("key", ["keys/mine", "format2", "forgotten/x", "gc/1/condemned"])
def test_a_writer_can_put_nothing_that_takes_data_or_keys_away(roles, key):
    with pytest.raises(AccessError):
        roles.store("writer").put_if_absent(key, b"x")


def test_a_writer_sees_nothing_outside_of_the_repository(roles):
    outside = open_store(f"s3://{roles.bucket}/other", s3=roles.seaweed.options_of("writer"))

    with pytest.raises(AccessError):
        list(outside.list())
    with pytest.raises(AccessError):
        outside.put_if_absent("packs/00/x", b"x")


def test_what_is_not_there_is_not_found_although_it_may_not_be_read(roles):
    with pytest.raises(NotFoundError):
        roles.store("writer").get("packs/00/none")


def test_who_does_not_write_cannot_put_packs(roles):
    with pytest.raises(AccessError):
        roles.store("restorer").put_if_absent("packs/00/x", b"x")


def test_a_restorer_cannot_delete(roles):
    roles.become("writer")
    roles.run("backup")

    for key in keys(roles, ""):
        with pytest.raises(AccessError):
            roles.store("restorer").delete(key)


def test_a_restorer_rescues_from_the_bucket_with_the_key_alone(roles, monkeypatch):
    before = roles.digest("app1")
    roles.become("writer")
    roles.run("backup")
    options = roles.seaweed.options_of("restorer")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options.secret_key)
    source = ["rescue", f"s3://{roles.bucket}/prod", "--s3-endpoint", roles.seaweed.endpoint_url]
    out = roles.folder / "out"

    assert main([*source, "--key-file", str(roles.folder / "key"), "restore", "app1", "--to", str(out)]) == 0

    assert hashlib.sha256((out / "app1/root.raw").read_bytes()).hexdigest() == before


def test_a_collector_frees_the_space_of_what_it_forgets(roles):
    roles.become("writer")
    roles.run("backup")
    for disk in ("root", "data"):
        roles.write("db1", disk, seed="later")
    roles.run("backup")
    roles.become("collector")
    old, new = roles.points("db1")

    with repositories.open_repository(roles.file) as repository:
        repository.forget(old, "retention")
        collected = repository.collect(repack_below=1.0)

    assert (collected.packs > 0, collected.locked) == (True, 0)
    roles.become("restorer")
    assert [point.session for point in roles.points("db1")] == [new.session]
    assert roles.run("verify").exit_code == 0


def test_a_collector_deletes_packs_and_points_but_no_keys(roles):
    roles.become("writer")
    roles.run("backup")
    store = roles.store("collector")

    for key in keys(roles, "points/") + keys(roles, "packs/"):
        store.delete(key)
    for key in ("format", "keys/default", "runs/any"):
        with pytest.raises(AccessError):
            store.delete(key)

    assert keys(roles, "packs/") == []


def test_a_writer_cannot_remove_key_slots(roles, monkeypatch):
    monkeypatch.chdir(roles.folder)
    assert main(["key", "new", "other"]) == 0
    assert main(["key", "add", "other", "--key-file", "other"]) == 0
    roles.become("writer")

    assert main(["key", "remove", "default", "--key-file", "other"]) == 6
    assert keys(roles, "keys/") == ["keys/default", "keys/other"]
