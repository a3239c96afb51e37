"""What opens a repository, and what its format object says."""

import json
import stat
from datetime import UTC, datetime, timedelta

import pytest

from vmkeep.errors import AccessError, InputError, IntegrityError, NotFoundError, UnsupportedError
from vmkeep.repository import (
    Repository,
    Secret,
    generate_key_file,
    list_slots,
    read_key_file,
    read_key_variable,
)
from vmkeep.repository.format import Format
from vmkeep.stores import MemoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed, at
from vmkeep.testing.repositories import KEY, backup, contents, small_repository


def test_a_passphrase_opens_what_it_made_and_no_other_does(tmp_path):
    store = MemoryStore()
    made = small_repository(store, Secret.passphrase("correct horse"))
    saved = backup(made, tmp_path / "s", {"root": b"x" * 9000})

    opened = Repository.open(store, Secret.passphrase("correct horse"))

    assert contents(opened, saved) == {"root": b"x" * 9000}
    with pytest.raises(AccessError, match="wrong key"):
        Repository.open(store, Secret.passphrase("correct house"))


def test_a_key_file_is_for_its_owner_only_and_is_never_overwritten(tmp_path):
    path = tmp_path / "keys" / "shop.key"
    secret = generate_key_file(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key_file(path) == secret
    with pytest.raises(InputError, match="never overwritten"):
        generate_key_file(path)


def test_a_key_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "our shop.key"
    generate_key_file(path)
    path.chmod(0o640)

    with pytest.raises(AccessError, match=rf"mode 0640: other users can use it; run: chmod 600 '{path}' "):
        read_key_file(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"vmkeep-key-1:xyz", b"vmkeep-key-1:0011", b"\xff\xfe"])
def test_a_key_file_without_a_key_is_refused(tmp_path, content):
    path = tmp_path / "shop.key"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(InputError):
        read_key_file(path)


def test_a_file_of_text_is_a_passphrase_and_one_of_bytes_a_key(tmp_path):
    path = tmp_path / "shop.key"
    path.touch(0o600)
    path.write_text("correct horse\n")
    assert read_key_file(path) == Secret.passphrase("correct horse")

    path.write_bytes(bytes(range(200, 240)))
    assert read_key_file(path).strong


def test_a_variable_holds_a_secret():
    assert read_key_variable("KEY", {"KEY": "words"}) == Secret.passphrase("words")
    with pytest.raises(AccessError, match="KEY, which holds the repository's key, is not set"):
        read_key_variable("KEY", {})


def test_a_missing_key_file_is_a_clear_error(tmp_path):
    with pytest.raises(AccessError, match=r"cannot read the key file .*none: No such file"):
        read_key_file(tmp_path / "none")


def test_secrets_are_not_shown():
    assert "horse" not in repr(Secret.passphrase("horse"))
    assert repr(KEY.data)[2:-1] not in repr(KEY)


def test_a_second_slot_opens_the_same_repository(tmp_path):
    store = MemoryStore()
    repository = small_repository(store)
    saved = backup(repository, tmp_path / "s", {"root": b"x"})

    repository.access.add_slot("emergency", Secret.passphrase("in the safe"))

    opened = Repository.open(store, Secret.passphrase("in the safe"))
    assert contents(opened, saved) == {"root": b"x"}
    assert Repository.open(store, KEY, slot="default").keys == opened.keys
    with pytest.raises(InputError, match="slot 'emergency' exists in memory"):
        repository.access.add_slot("emergency", KEY)


def with_slots(**secrets):
    """A repository with a slot of each name besides `default`, which KEY opens."""
    store = MemoryStore()
    repository = small_repository(store)
    for name, secret in secrets.items():
        repository.access.add_slot(name, secret)
    return store, repository


def test_slots_tell_what_opens_them_and_when_they_were_made():
    store, _ = with_slots(safe=Secret.passphrase("in the safe"))

    slots = {slot.name: slot for slot in list_slots(store)}

    assert {name: slot.kind for name, slot in slots.items()} == {"default": "key", "safe": "passphrase"}
    age = datetime.now(UTC) - datetime.fromisoformat(slots["safe"].made)
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_a_key_that_opens_none_of_several_slots_is_told_so():
    store, _ = with_slots(safe=Secret.passphrase("in the safe"))

    with pytest.raises(AccessError, match=r"opens none of the 2 slots .*\(default, safe\)"):
        Repository.open(store, Secret.passphrase("in the sofa"))


def test_a_key_is_replaced_without_encrypting_anything_again(tmp_path):
    new = Secret.key(b"n" * 32)
    store, repository = with_slots(second=new)
    saved = backup(repository, tmp_path / "s", {"root": b"x" * 9000})
    before = {info for info in store.list() if not info.key.startswith("keys/")}

    assert Repository.open(store, new).access.remove_slot("default", new) == "second"

    assert contents(Repository.open(store, new), saved) == {"root": b"x" * 9000}
    assert {info for info in store.list() if not info.key.startswith("keys/")} == before
    with pytest.raises(AccessError, match="wrong key"):
        Repository.open(store, KEY)


def test_the_last_slot_that_is_known_to_work_is_never_removed():
    store, repository = with_slots(safe=Secret.passphrase("in the safe"))

    with pytest.raises(InputError, match="'default' stays: the key at hand opens no other slot"):
        repository.access.remove_slot("default", KEY)

    assert [slot.name for slot in list_slots(store)] == ["default", "safe"]


def test_a_damaged_slot_does_not_count_as_one_that_stays():
    store, repository = with_slots(copy=KEY)
    store._objects["keys/copy"] = store._objects["keys/copy"].replace(b'"salt":"', b'"salt":"0')

    with pytest.raises(InputError, match="opens no other slot"):
        repository.access.remove_slot("default", KEY)

    assert [slot.kind for slot in list_slots(store)] == ["unknown", "key"]
    assert repository.access.remove_slot("copy", KEY) == "default"


def test_two_who_remove_each_others_slots_at_once_do_not_lock_everybody_out():
    other = Secret.key(b"o" * 32)
    store, repository = with_slots(other=other)

    class Raced(FaultyStore):
        """At our deletion, the other one deletes the slot that we keep."""

        def delete(self, key):
            store.delete("keys/default")
            store.delete(key)

    repository.store = Raced(store, lambda _: None)
    repository.access.remove_slot("other", KEY)

    assert Repository.open(store, KEY).access.slots_opened_by(KEY) == ["default"]


def test_a_lost_or_damaged_slot_is_no_disaster(tmp_path):
    store, repository = with_slots(safe=Secret.passphrase("in the safe"))
    saved = backup(repository, tmp_path / "s", {"root": b"x"})
    store.delete("keys/default")

    assert contents(Repository.open(store, Secret.passphrase("in the safe")), saved) == {"root": b"x"}


def test_a_slot_that_is_not_there_cannot_be_removed():
    _, repository = with_slots()

    with pytest.raises(NotFoundError, match="no key slot 'sofa'; it has default"):
        repository.access.remove_slot("sofa", KEY)


def test_a_repository_is_made_once():
    store = MemoryStore()
    Repository.init(store, KEY)

    with pytest.raises(InputError, match="holds a repository already"):
        Repository.init(store, KEY)


def test_an_empty_store_holds_no_repository():
    with pytest.raises(NotFoundError, match="memory: holds no repository"):
        Repository.open(MemoryStore(), KEY)


def test_what_a_killed_init_left_is_completed():
    for number in range(1, 9):
        store = MemoryStore()
        with pytest.raises(Killed):
            Repository.init(FaultyStore(store, at(number, Fault.KILLED)), KEY)

        Repository.init(store, KEY)

        Repository.open(store, KEY)


def changed_format(**changes):
    store = MemoryStore()
    record = json.loads(Format.new().encode()) | changes
    store.put_if_absent("format", json.dumps(record).encode())
    Repository.init(store, KEY)
    return store


def test_a_later_version_is_refused():
    with pytest.raises(UnsupportedError, match="format version 2, and this vmkeep knows 1"):
        changed_format(version=2)


def test_a_feature_is_refused_only_for_the_operation_that_needs_it(tmp_path):
    store = changed_format(features={"read": [], "write": ["erasure-codes"], "collect": []})
    repository = Repository.open(store, KEY)

    assert repository.points() == []
    with pytest.raises(UnsupportedError, match="erasure-codes, which this vmkeep does not know and must"):
        repository.begin(vm="db1", run="r", spool=tmp_path / "s")
    with pytest.raises(UnsupportedError, match="to read"):
        Repository.open(changed_format(features={"read": ["x"], "write": [], "collect": []}), KEY)


def test_a_format_object_that_was_changed_is_noticed():
    store = MemoryStore()
    Repository.init(store, KEY)
    store._objects["format"] = store._objects["format"].replace(b'"leaf": 512', b'"leaf": 513')

    with pytest.raises(IntegrityError, match="format object is damaged"):
        Repository.open(store, KEY)


def test_index_objects_are_kept_as_they_are_and_a_damaged_one_is_read_again(tmp_path):
    store = MemoryStore()
    saved = backup(small_repository(store), tmp_path / "s", {"root": b"x" * 9000})
    cache = tmp_path / "cache"
    assert contents(Repository.open(store, KEY, cache=cache), saved)
    (file,) = cache.rglob(f"index/{saved.session}")
    assert file.read_bytes() == store.get(f"index/{saved.session}")
    file.write_bytes(b"damaged")
    for merged in cache.rglob("merged"):
        merged.unlink()

    assert contents(Repository.open(store, KEY, cache=cache), saved) == {"root": b"x" * 9000}
