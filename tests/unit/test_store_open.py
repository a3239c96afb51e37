"""Stores by URL, and stores that are refused."""

from pathlib import Path

import pytest

from vmkeep.errors import AccessError, InputError
from vmkeep.repository import Repository
from vmkeep.stores import DirectoryStore, MemoryStore, S3Options, open_store, probe
from vmkeep.testing.repositories import KEY


def test_a_path_is_relative_to_the_fleet_file(tmp_path):
    store = open_store("backups", base=tmp_path)

    assert isinstance(store, DirectoryStore)
    assert Path(store.url) == tmp_path / "backups"


def test_an_absolute_path_stays_as_it_is(tmp_path):
    assert open_store(str(tmp_path / "b"), base=Path("/nowhere")).url == str(tmp_path / "b")


@pytest.mark.parametrize("url", ["ftp://host/path", "http://host", "s4://bucket"])
def test_an_unknown_kind_is_refused(url):
    with pytest.raises(InputError, match="no store that vmkeep knows"):
        open_store(url)


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://key:secret@bucket/prefix"])
def test_an_s3_url_without_a_bucket_or_with_credentials_is_refused(url):
    with pytest.raises(InputError, match="write s3://bucket"):
        open_store(url)


def test_credentials_are_not_shown():
    options = S3Options("https://s3.example", access_key="AKIA", secret_key="hidden")

    assert "hidden" not in repr(options)
    assert "AKIA" not in repr(options)


class Overwriting(MemoryStore):
    def put_if_absent(self, key, body):
        self._objects[key] = body
        return True


class Forgetful(MemoryStore):
    def list(self, prefix=""):  # noqa: ARG002
        return iter(())


class WithoutDelete(MemoryStore):
    def delete(self, key):
        raise AccessError(f"may not delete {key}")


def test_a_store_that_overwrites_is_refused():
    with pytest.raises(InputError, match="was overwritten"):
        probe(Overwriting())
    with pytest.raises(InputError, match="memory: cannot hold a repository"):
        Repository.init(Overwriting(), KEY)


def test_a_store_that_does_not_list_what_was_written_is_refused():
    with pytest.raises(InputError, match="not in the listing"):
        probe(Forgetful())


def test_a_writer_that_may_not_delete_is_enough():
    probe(WithoutDelete())
