"""Which packs were checked, and when: remembered in the repository, for whoever checks next.

    verified/<id>          name 16 | minutes since 1970 u32    for each pack that was read back, encrypted
    verified/quick.<id>    the same for each pack that was compared without reading it
    verified/broken.<id>   the same for each pack in which damage was found

Each object tells all that was known when it was put; of two that were put at the same time both count.
None is needed for a restore, so what is damaged or missing is as if it had never been checked.
"""

from __future__ import annotations

import contextlib
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from vmkeep.errors import AccessError, IntegrityError, NotFoundError
from vmkeep.repository import layout, sealed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vmkeep.repository.crypto import Keys
    from vmkeep.repository.index import PackInfo
    from vmkeep.stores.base import Store

READ: Final = ""
QUICK: Final = "quick."
BROKEN: Final = "broken."
_KIND: Final = "verified"
_ENTRY: Final = struct.Struct("<16sI")
_KEPT: Final = 3
"""Objects of each kind that are read and kept: more than one, for several may be put at once."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SKEW: Final = timedelta(hours=1)
"""By how much clocks may differ."""
_MINUTE: Final = timedelta(minutes=1)


def read(store: Store, keys: Keys, now: datetime, *, kind: str = READ) -> dict[bytes, datetime]:
    """Return when each pack was checked the last time, by its name; those that never were are left out.

    So are times that have not come: a clock was not right, and such a pack would never have its turn again.
    """
    latest: dict[bytes, int] = {}
    last = (now + _SKEW - _EPOCH) // _MINUTE
    for name, minutes in _entries(store, keys, kind):
        if minutes <= last:
            latest[name] = max(minutes, latest.get(name, 0))
    return {name: _EPOCH + minutes * _MINUTE for name, minutes in latest.items()}


def remember(
    store: Store, keys: Keys, times: Mapping[bytes, datetime], now: datetime, *, kind: str = READ
) -> None:
    """Put when packs were checked: all of them, not only those of this time."""
    # Behind all that is there: the newest few are read, also after a clock was ahead.
    before = [key.removeprefix(layout.verified("", kind)) for key in _listed(store, kind)[-1:]]
    key = layout.verified(layout.new_session_id(now, after=before), kind)
    body = b"".join(
        _ENTRY.pack(name, max(0, (time - _EPOCH) // _MINUTE)) for name, time in sorted(times.items())
    )
    store.put_if_absent(key, sealed.seal(keys, _KIND, key, body))


def broken(store: Store, keys: Keys) -> frozenset[bytes]:
    """Return the names of packs in which damage was found, as far as that is remembered."""
    return frozenset(name for name, _ in _entries(store, keys, BROKEN))


def remember_broken(store: Store, keys: Keys, names: Iterable[bytes], now: datetime) -> None:
    """Remember in which packs damage was found; what is remembered stays so."""
    known = broken(store, keys)
    if not known.issuperset(names := frozenset(names)):
        remember(store, keys, dict.fromkeys(known | names, now), now, kind=BROKEN)


def superseded(store: Store) -> Iterable[str]:
    """Return the keys of objects that are not read any more."""
    return [key for kind in (READ, QUICK, BROKEN) for key in _listed(store, kind)[:-_KEPT]]


def longest_unchecked(
    packs: Sequence[PackInfo], times: Mapping[bytes, datetime], share: float
) -> list[PackInfo]:
    """Return a *share* (0 to 1) of the bytes of *packs*: those first that were not checked for longest."""
    enough = share * sum(pack.size for pack in packs)
    chosen: list[PackInfo] = []
    size = 0
    for pack in sorted(packs, key=lambda each: (times.get(each.name, _EPOCH), each.name)):
        if size >= enough:
            break
        chosen.append(pack)
        size += pack.size
    return chosen


def _entries(store: Store, keys: Keys, kind: str) -> Iterator[tuple[bytes, int]]:
    """Yield pack and minutes of all that the newest objects of a kind say."""
    for key in _listed(store, kind)[-_KEPT:]:
        with contextlib.suppress(IntegrityError, NotFoundError, AccessError):
            yield from _ENTRY.iter_unpack(sealed.unseal(keys, _KIND, key, store.get(key)))


def _listed(store: Store, kind: str) -> list[str]:
    """Return the keys of one kind of objects, in order of time."""
    start = layout.verified("", kind)
    keys = (info.key for info in store.list(layout.VERIFIED))
    return sorted(key for key in keys if key.startswith(start) and layout.is_session_id(key[len(start) :]))
