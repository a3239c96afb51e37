"""What drills proved: which recovery points came back, and after how long."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from vmkeep.errors import AccessError, IntegrityError, NotFoundError
from vmkeep.repository import layout, sealed
from vmkeep.repository.records import from_json
from vmkeep.repository.runs import put_record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import Store

_KIND = "drill"


def put(store: Store, keys: Keys, run_id: str, record: Mapping[str, Any]) -> None:
    """See `Repository.put_drill`."""
    put_record(store, keys, layout.drill(run_id), _KIND, record)


def read(store: Store, keys: Keys) -> dict[str, dict[str, Any]]:
    """See `Repository.drills`."""
    found = {}
    for key in sorted(info.key for info in store.list(layout.DRILLS)):
        with contextlib.suppress(IntegrityError, NotFoundError, AccessError):
            found[key.removeprefix(layout.DRILLS)] = from_json(
                sealed.unseal(keys, _KIND, key, store.get(key)), key
            )
    return found
