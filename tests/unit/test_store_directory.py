"""What only a directory store can get wrong."""

import errno
import os

import pytest

from vmkeep.errors import AccessError, InputError, TemporaryError
from vmkeep.stores import DirectoryStore


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def test_a_temporary_file_of_a_killed_writer_is_removed_when_it_is_old(folder):
    DirectoryStore(folder)
    old, new = folder / ".tmp-0011", folder / ".tmp-0022"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))

    store = DirectoryStore(folder)

    assert not old.exists()
    assert new.exists()
    assert list(store.list()) == []


def test_nothing_temporary_stays_behind_a_write(folder):
    store = DirectoryStore(folder)

    store.put_if_absent("a/b", b"x")
    store.put_if_absent("a/b", b"y")

    assert sorted(path.name for path in folder.rglob("*")) == ["a", "b"]


def test_a_key_never_leads_out_of_the_directory(folder, tmp_path):
    (tmp_path / "outside").write_text("private")
    store = DirectoryStore(folder)

    for key in ("../outside", "a/../../outside", str(tmp_path / "outside")):
        with pytest.raises(InputError, match="is not an object key"):
            store.get(key)


def test_a_file_of_that_name_is_no_store(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(InputError, match="is not a directory"):
        DirectoryStore(tmp_path / "file")


def test_a_file_on_another_file_system_is_copied(folder, tmp_path, monkeypatch):
    body = tmp_path / "body"
    body.write_bytes(b"content")
    real = os.link

    def link(source, final):
        if source == body:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, final)

    monkeypatch.setattr(os, "link", link)

    store = DirectoryStore(folder)

    assert store.put_if_absent("a", body)
    assert (folder / "a").stat().st_ino != body.stat().st_ino
    assert store.get("a") == b"content"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "lost"), FileExistsError(errno.EEXIST, "repeated")])
def test_a_link_whose_answer_was_lost_is_known_again(folder, monkeypatch, error):
    store = DirectoryStore(folder)
    real = os.link

    def lost(source, final):
        real(source, final)
        raise error

    monkeypatch.setattr(os, "link", lost)

    assert store.put_if_absent("a", b"x")


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EACCES, AccessError),
        (errno.EROFS, AccessError),
        (errno.ENOSPC, TemporaryError),
        (errno.EDQUOT, TemporaryError),
        (errno.ESTALE, TemporaryError),
    ],
)
def test_an_error_of_the_system_says_what_to_do_next(folder, monkeypatch, number, error):
    store = DirectoryStore(folder)

    def fail(_source, _final):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)

    with pytest.raises(error, match=f"cannot write {folder}/a/b: {os.strerror(number)}"):
        store.put_if_absent("a/b", b"x")
    assert [path.name for path in folder.rglob("*")] == ["a"]
