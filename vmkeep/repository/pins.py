"""Recovery points that are being read: what they are made of stays until the reader leaves."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkeep.errors import AccessError, NotFoundError, VmkeepError
from vmkeep.repository import layout, presence
from vmkeep.repository.forgotten import forgotten_sessions
from vmkeep.repository.parallel import TRANSFERS, in_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import Store


def new_reader() -> str:
    """Return a name for somebody who reads."""
    return layout.new_session_id(datetime.now(UTC))


def pin(store: Store, keys: Keys, points: Mapping[str, str], reader: str) -> dict[str, bytes]:
    """Keep the chunks of *points* (VM to session) from being deleted until `unpin`, also if forgotten.

    Where the credentials may not write, it goes without: a point is safe as long as it is not forgotten.

    Returns:
        The points by VM, as they lie in the store: their objects are not kept when they are forgotten.

    Raises:
        NotFoundError: a point is forgotten already.
        TemporaryError: the store is away.
    """
    with contextlib.suppress(AccessError):
        presence.announce_reader(store, keys, reader, points)
    wanted = [layout.decision(vm, session) for vm, session in points.items()]
    try:
        found = dict(zip(points, in_order(store.get, wanted, threads=TRANSFERS), strict=True))
    except NotFoundError:
        found = {}
    # Only now: a collector that did not see us has condemned only what was forgotten before.
    gone = forgotten_sessions(store)
    for vm, session in points.items():
        if session in gone or vm not in found:
            raise NotFoundError(f"recovery point {session} of {vm} was forgotten; choose another one")
    return found


def pinned(store: Store, reader: str) -> bool:
    """Tell whether what *reader* pinned was kept all the time until now."""
    return reader in presence.names(store) and not presence.has_left(store, reader)


def renew(store: Store, reader: str, now: datetime | None = None) -> bool:
    """Say that *reader*, who pinned points some days ago, still reads; it is not taken for dead now.

    Returns:
        Whether all was kept until now. If not, `pin` finds out what is left.
    """
    with contextlib.suppress(AccessError):
        presence.still_reading(store, reader, now or datetime.now(UTC))
    return pinned(store, reader)


def unpin(store: Store, reader: str) -> None:
    """Let go of what *reader* pinned."""
    # It harms nobody if it stays: a collector that meets it waits for a while, then removes it.
    with contextlib.suppress(VmkeepError):
        presence.leave_reading(store, reader)


@contextlib.contextmanager
def reading(store: Store, keys: Keys, points: Mapping[str, str]) -> Iterator[None]:
    """Pin *points* as long as the context is open; raises as `pin`."""
    reader = new_reader()
    try:
        pin(store, keys, points, reader)
        yield
    finally:
        unpin(store, reader)
