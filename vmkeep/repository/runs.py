"""The records of runs: which recovery points one run of a fleet made, and what it says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmkeep.errors import ConflictError
from vmkeep.repository import layout, sealed
from vmkeep.repository.parallel import TRANSFERS, in_order
from vmkeep.repository.records import from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import Store


def put(store: Store, keys: Keys, run_id: str, record: Mapping[str, Any]) -> None:
    """See `Repository.put_run`."""
    put_record(store, keys, layout.run(run_id), "run", record)


def put_record(store: Store, keys: Keys, key: str, kind: str, record: Mapping[str, Any]) -> None:
    """Keep a record; a second call with the same one does nothing.

    Raises:
        ConflictError: another was kept under this key.
    """
    body = to_json(dict(record))
    if store.put_if_absent(key, sealed.seal(keys, kind, key, body)):
        return
    if sealed.unseal(keys, kind, key, store.get(key)) != body:
        raise ConflictError(f"there is another record {key} in {store.url} already")


def read(store: Store, keys: Keys) -> dict[str, dict[str, Any]]:
    """See `Repository.runs`."""
    names = [info.key for info in store.list(layout.RUNS)]
    bodies = in_order(store.get, names, threads=TRANSFERS)
    return {
        key.removeprefix(layout.RUNS): from_json(sealed.unseal(keys, "run", key, body), key)
        for key, body in zip(names, bodies, strict=True)
    }
