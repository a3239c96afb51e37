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
    key = layout.run(run_id)
    body = to_json(dict(record))
    if store.put_if_absent(key, sealed.seal(keys, "run", key, body)):
        return
    if sealed.unseal(keys, "run", key, store.get(key)) != body:
        raise ConflictError(f"run {run_id} has another record in {store.url} already")


def read(store: Store, keys: Keys) -> dict[str, dict[str, Any]]:
    """See `Repository.runs`."""
    names = [info.key for info in store.list(layout.RUNS)]
    bodies = in_order(store.get, names, threads=TRANSFERS)
    return {
        key.removeprefix(layout.RUNS): from_json(sealed.unseal(keys, "run", key, body), key)
        for key, body in zip(names, bodies, strict=True)
    }
