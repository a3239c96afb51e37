"""A session that stores again what is damaged; it ends like a rewriting of packs (see `repack`).

What is whole is found and not stored again, what is broken gets a new place that readers find. Nothing is
changed or deleted: whoever dies in it has left a session that counts nothing.
"""

from __future__ import annotations

import contextlib
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkeep.disks import scratch
from vmkeep.errors import VmkeepError
from vmkeep.repository import layout, presence
from vmkeep.repository.decision import Decision, decide
from vmkeep.repository.index import Index
from vmkeep.repository.packer import Packer
from vmkeep.repository.repack import commit
from vmkeep.repository.spool import Spool
from vmkeep.repository.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmkeep.repository.repository import Repository


class Mending:
    """Where repairs store. Not safe to use from several threads."""

    def __init__(self, repository: Repository, session: str, spool: Spool, broken: frozenset[bytes]) -> None:
        self._repository, self._session, self._broken = repository, session, broken
        self._spool = spool
        self._uploads = Uploads(repository.store, spool)
        pending = repository.committed.collections.pending()
        self.packer = Packer(
            repository.keys,
            spool,
            Index.merge([repository.committed.refresh()], without=broken | pending),
            most=repository.format.pack_most,
            finished=self._uploads.add,
        )

    def finish(self) -> bool:
        """Let what was stored count; false: somebody took us for dead, and nothing of it does.

        Raises:
            TemporaryError: the store is away.
        """
        self.packer.flush()
        self._uploads.upload()
        return commit(self._repository, self._session, self.packer.packs.values(), self._broken)

    def close(self) -> None:
        """Drop what was not finished."""
        self.packer.abandon()
        self._uploads.stop()
        self._spool.close()


@contextlib.contextmanager
def mending(repository: Repository, broken: Iterable[bytes]) -> Iterator[Mending]:
    """Let the block store again what is damaged.

    Args:
        broken: the names of packs that must not be counted on.

    Raises:
        TemporaryError: a store is away; nothing has changed.
    """
    broken = frozenset(broken)
    # Newer than what it replaces, whatever a clock shows or showed: of two copies the newer one is kept.
    repository.committed.refresh()
    stored = repository.committed.sessions()
    session = layout.new_session_id(
        datetime.now(UTC), after={stored[name] for name in broken if name in stored}
    )
    with scratch.scratch_folder() as folder:  # the next vmkeep removes it, should we be killed
        presence.announce_repacker(repository.store, repository.keys, session)
        work = Mending(repository, session, Spool(folder / "spool"), broken)
        try:
            yield work
        except BaseException:
            with contextlib.suppress(VmkeepError):
                void = Decision(secrets.token_hex(16), None, "the repair failed")
                decide(repository.store, repository.keys, layout.repacked(session), void)
                presence.leave(repository.store, session)
            raise
        finally:
            work.close()
        presence.leave(repository.store, session)
