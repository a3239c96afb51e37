"""What every store must do: run by `tests/contract`, and by other stores' tests."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vmkeep.errors import InputError, NotFoundError
from vmkeep.stores.base import ObjectInfo
from vmkeep.stores.probe import probe
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmkeep.stores.base import Store


class StoreContract(ABC):
    """Subclass it, and give `open_store`: the same empty store, each time through a new object."""

    @abstractmethod
    def open_store(self) -> Store:
        """Return the store; a second call of the same test returns the same objects."""

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        store = self.open_store()
        yield store
        store.close()

    def test_what_was_put_is_returned(self, store: Store) -> None:
        assert store.put_if_absent("packs/ab/abcd", b"some bytes")

        assert store.get("packs/ab/abcd") == b"some bytes"

    def test_a_file_is_put_like_bytes(self, store: Store, tmp_path: Path) -> None:
        file = tmp_path / "body"
        file.write_bytes(random.Random(1).randbytes(5 * MiB + 3))

        assert store.put_if_absent("packs/file", file)
        assert store.get("packs/file") == file.read_bytes()

    def test_a_file_that_was_put_may_be_removed(self, store: Store, tmp_path: Path) -> None:
        file = tmp_path / "body"
        file.write_bytes(b"content")
        store.put_if_absent("packs/file", file)

        file.unlink()

        assert store.get("packs/file") == b"content"

    def test_what_exists_is_never_overwritten(self, store: Store, tmp_path: Path) -> None:
        store.put_if_absent("points/db1/1", b"first")
        (tmp_path / "body").write_bytes(b"third")

        assert not store.put_if_absent("points/db1/1", b"second")
        assert not store.put_if_absent("points/db1/1", tmp_path / "body")
        assert store.get("points/db1/1") == b"first"

    def test_of_many_writers_exactly_one_wins(self, store: Store) -> None:
        bodies = [bytes([i]) * 1000 for i in range(8)]
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda body: store.put_if_absent("points/race", body), bodies))

        assert won.count(True) == 1
        assert store.get("points/race") == bodies[won.index(True)]

    def test_another_user_of_the_store_sees_every_write(self, store: Store) -> None:
        store.put_if_absent("index/1", b"x")

        other = self.open_store()
        assert other.get("index/1") == b"x"
        assert [info.key for info in other.list()] == ["index/1"]
        other.close()

    def test_a_range_is_returned(self, store: Store) -> None:
        data = random.Random(2).randbytes(3 * MiB)
        store.put_if_absent("packs/a", data)

        assert store.get("packs/a", MiB + 1, 1000) == data[MiB + 1 : MiB + 1001]
        assert store.get("packs/a", 3 * MiB - 5) == data[-5:]

    def test_a_range_beyond_the_end_is_cut_off(self, store: Store) -> None:
        store.put_if_absent("packs/a", b"0123456789")

        assert store.get("packs/a", 8, 100) == b"89"
        assert store.get("packs/a", 10, 100) == b""
        assert store.get("packs/a", 50, 1) == b""
        assert store.get("packs/a", 2, 0) == b""

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        store.put_if_absent("runs/empty", b"")

        assert store.get("runs/empty") == b""
        assert list(store.list("runs/")) == [ObjectInfo("runs/empty", 0)]

    def test_what_does_not_exist_is_not_found(self, store: Store) -> None:
        store.put_if_absent("packs/ab/abcd", b"x")

        for key in ("format", "packs/ab/none", "packs/ab"):
            with pytest.raises(NotFoundError, match=key):
                store.get(key)

    def test_a_listing_has_the_keys_with_the_prefix_in_order(self, store: Store) -> None:
        keys = ["a", "b/1", "b/10", "b/2", "b/c/3", "b-1", "ba/1", "c"]
        for key in reversed(keys):
            store.put_if_absent(key, key.encode())

        assert [info.key for info in store.list()] == sorted(keys)
        assert list(store.list("b/")) == [ObjectInfo(k, len(k)) for k in sorted(keys) if k.startswith("b/")]
        assert [info.key for info in store.list("b/1")] == ["b/1", "b/10"]
        assert list(store.list("nothing/")) == []

    def test_a_listing_of_more_than_a_thousand_objects_is_complete(self, store: Store) -> None:
        keys = [f"packs/{number:05d}" for number in range(1100)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put_if_absent(key, b""), keys))

        assert [info.key for info in store.list("packs/")] == keys

    def test_what_was_deleted_is_gone(self, store: Store) -> None:
        store.put_if_absent("open/1", b"x")

        store.delete("open/1")
        store.delete("open/1")

        assert list(store.list()) == []
        assert store.put_if_absent("open/1", b"y")

    @pytest.mark.parametrize(
        "key", ["", "/a", "a//b", "../a", "a/../b", "a/./b", ".a", "a b", "ä", "a/", "x\n"]
    )
    def test_a_key_that_is_not_safe_everywhere_is_refused(self, store: Store, key: str) -> None:
        with pytest.raises(InputError):
            store.put_if_absent(key, b"x")
        with pytest.raises(InputError):
            store.get(key)

    def test_it_passes_the_probe_and_nothing_stays_of_it(self, store: Store) -> None:
        probe(store)

        assert list(store.list()) == []

    def test_its_url_is_for_people(self, store: Store) -> None:
        assert store.url
        assert "secret" not in store.url
