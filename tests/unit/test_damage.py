"""Damage of files is told by their paths."""

from vmkeep.components.catalogue import Entry
from vmkeep.components.files import CATALOGUE, CONTENT
from vmkeep.operations.damage import files_of, told
from vmkeep.repository import Damage, Place, SavedComponent
from vmkeep.stores import MemoryStore
from vmkeep.testing.repositories import point, small_repository

NAME = "filesystems.exports"


def entry(name, start, length):
    return Entry((b"srv", name), "file", 0o644, 0, 0, 0, length, ((0, start, length),))


def saved(folder):
    """Save three files, one behind another."""
    repository = small_repository(MemoryStore())
    files = [entry(b"a", 0, 1000), entry(b"b", 1000, 5000), entry(b"caf\xe9", 6000, 10)]
    with repository.begin(vm="db1", run="r", spool=folder) as session:
        content, _ = session.save_stream([bytes(6010)])
        catalogue, _ = session.save_stream([each.to_line() for each in files])
        session.record(SavedComponent(NAME, streams={CONTENT: content, CATALOGUE: catalogue}))
        session.upload()
        return repository, session.seal(point(session.recorded()))


def damage(sealed, item, start, length):
    return Damage(sealed.vm, sealed.session, Place(NAME, item, start, length), "chunk x: broken")


def test_the_files_in_a_damaged_range_are_named(tmp_path):
    repository, sealed = saved(tmp_path)

    found = {
        (start, length): [*files_of(repository, sealed, damage(sealed, f"stream {CONTENT}", start, length))]
        for start, length in [(0, 1000), (999, 2), (1000, 1), (6005, 5)]
    }

    assert found == {
        (0, 1000): ["/srv/a"],
        (999, 2): ["/srv/a", "/srv/b"],
        (1000, 1): ["/srv/b"],
        (6005, 5): ["/srv/caf\\xe9"],
    }


def test_damage_of_another_stream_names_no_files(tmp_path):
    repository, sealed = saved(tmp_path)

    assert [*files_of(repository, sealed, damage(sealed, f"stream {CATALOGUE}", 0, 10))] == []


def test_a_message_names_place_and_files_and_says_what_to_do(tmp_path):
    repository, sealed = saved(tmp_path)

    text = told(repository, [damage(sealed, f"stream {CONTENT}", 0, 10)] * 7)

    assert f"db1/{NAME} of {sealed.session}: stream content, 10 bytes at 0" in text
    assert "(in /srv/a)" in text
    assert "and 2 more places" in text
    assert "older recovery point" in text
