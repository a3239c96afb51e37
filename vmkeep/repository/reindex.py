"""Make the indexes that are lost again, from the footers of the packs.

Readers find what a lost index described in the packs by themselves; collections do not, and delete nothing as
long as one is lost. Of which session a pack is that no index knows cannot be told: all of them go into one
index. What of it nobody needs is collected like anything else.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from vmkeep.repository import layout, sealed
from vmkeep.repository.committed import INDEX_KIND
from vmkeep.repository.index import Index

if TYPE_CHECKING:
    from vmkeep.repository.repository import Repository


def reindex(repository: Repository) -> list[str]:
    """Make the lost indexes again, and return the sessions that they are of; a second call does nothing.

    The new index is there before the damaged one is deleted: whoever dies in between has made nothing worse.

    Raises:
        AccessError: a damaged index may not be deleted.
        TemporaryError: the store is away; call again.
    """
    committed = repository.committed
    committed.refresh()
    lost = sorted(committed.lost)
    found = committed.unindexed() if lost else Index.empty()
    for session in lost:
        damaged = [key for key in committed.damaged if layout.session_of_index(key) == session]
        _put(repository, session, found)
        found = Index.empty()
        for key in damaged:
            repository.store.delete(key)
        if damaged:
            _put(repository, session, found, parts=1)  # a session without a first part has lost its index
    committed.refresh()
    return lost


def _put(repository: Repository, session: str, index: Index, *, parts: int | None = None) -> None:
    """Put an index at the first free part of a session's, of so many."""
    body = index.encode()
    for part in count(1) if parts is None else range(1, parts + 1):
        key = layout.index(session, part)
        if repository.store.put_if_absent(key, sealed.seal(repository.keys, INDEX_KIND, key, body)):
            return
