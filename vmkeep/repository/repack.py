"""Rewrite packs of which little is needed, so that the rest of them can be deleted.

    old   [a][ ][ ][ ][ ]  [ ][ ][b][ ]        needed: a, b
    new   [a][b]                               newer, so that these copies are the ones that are needed

It is a session like that of a writer: `open/` before all, packs, their index, and then one decision, by which
the index counts, unless a collector took us for dead before. Until then nothing has changed for anybody. The
old packs are not touched: a collection finds that they are not needed, and waits as it does for any.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.disks import scratch
from vmkeep.errors import IntegrityError, NotFoundError, VmkeepError
from vmkeep.repository import layout, presence, sealed
from vmkeep.repository.committed import INDEX_KIND
from vmkeep.repository.decision import Decision, decide
from vmkeep.repository.index import Index
from vmkeep.repository.pack import RECORD, PackReader, PackWriter
from vmkeep.repository.parallel import TRANSFERS, for_each
from vmkeep.repository.spool import Spool, spooling
from vmkeep.repository.uploads import Uploads
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from vmkeep.repository.crypto import Buffer
    from vmkeep.repository.index import Location
    from vmkeep.repository.needed import Needed
    from vmkeep.repository.pack import FinishedPack
    from vmkeep.repository.repository import Repository

_SPOOL_LIMIT: Final = 256 * MiB
"""Bytes of new packs on the local disk, above which reading waits for uploads."""

_Body = tuple["Location", "Buffer", int]


@dataclass(frozen=True, slots=True)
class Repacked:
    """What was written anew."""

    packs: int = 0
    """Packs whose needed chunks lie in new packs now."""
    size: int = 0
    """Bytes of these chunks, as they are stored."""
    damaged: tuple[str, ...] = ()
    """Why packs were left as they are: a needed chunk of theirs cannot be read."""


def repack(
    repository: Repository, needed: Needed, *, below: float, now: datetime, renew: bool = False
) -> Repacked:
    """Copy what is *needed* out of the packs of which less than *below* (0 to 1) is, into new packs.

    Args:
        renew: also out of all packs of earlier data epochs, so that it is encrypted with the newest keys.

    Raises:
        TemporaryError: a store or the local disk is away or full; nothing has changed.
    """
    sparse = [*needed.sparse(below, before=repository.keys.newest.epoch if renew else 0)]
    if not sparse:
        return Repacked()
    # Newer than what it replaces, also where the clock is not right.
    stored = {needed.sessions.get(chunks[0].pack.name, "") for chunks, _ in sparse}
    session = layout.new_session_id(now, after=filter(None, stored))
    with scratch.scratch_folder() as folder:  # the next vmkeep removes it, should we be killed
        return _Repack(repository, session, Spool(folder / "spool")).run(chunks for chunks, _ in sparse)


def commit(
    repository: Repository, session: str, packs: Iterable[FinishedPack], replaced: Iterable[bytes]
) -> bool:
    """Let the uploaded *packs* of a session count; false: it was fenced, and nothing of it counts.

    Args:
        replaced: the names of packs whose chunks lie in these now.
    """
    store, keys = repository.store, repository.keys
    key = layout.index(session)
    body = Index.of_packs((pack.info, pack.entries) for pack in packs).encode()
    # Nobody else has this name: an index that is there is ours.
    store.put_if_absent(key, sealed.seal(keys, INDEX_KIND, key, body))
    names = tuple(sorted(name.hex() for name in replaced))
    decision = Decision(secrets.token_hex(16), None, repacked=names)
    return decide(store, keys, layout.repacked(session), decision).nonce == decision.nonce


class _Repack:
    def __init__(self, repository: Repository, session: str, spool: Spool) -> None:
        self._repository = repository
        self._store, self._keys = repository.store, repository.keys
        self._session, self._spool = session, spool
        self._uploads = Uploads(repository.store, spool)
        self._lock = threading.Lock()
        self._current: PackWriter | None = None
        self._finished: list[FinishedPack] = []
        self._copied: dict[str, int] = {}
        """Bytes taken out of each pack."""
        self._damaged: list[str] = []

    def run(self, packs: Iterable[Sequence[Location]]) -> Repacked:
        presence.announce_repacker(self._store, self._keys, self._session)
        try:
            for_each(self._copy, packs, threads=TRANSFERS)
            self._finish()
            self._uploads.upload()
            if self._finished and not self._commit_all():
                self._copied.clear()  # somebody took us for dead
        except BaseException:
            self._close()
            # Otherwise collections would wait for us, until somebody takes us for dead.
            with contextlib.suppress(VmkeepError):
                self._decide(Decision(secrets.token_hex(16), None, "the repack failed"))
                presence.leave(self._store, self._session)
            raise
        finally:
            self._close()
        presence.leave(self._store, self._session)
        return Repacked(len(self._copied), sum(self._copied.values()), tuple(sorted(self._damaged)))

    def _copy(self, chunks: Sequence[Location]) -> None:
        """Copy the needed chunks of one pack, all of them or none."""
        name = chunks[0].pack.name
        try:
            bodies = self._read(chunks)
        except NotFoundError:
            return  # forgotten and collected meanwhile
        except IntegrityError as error:
            with self._lock:
                self._damaged.append(f"pack {name.hex()} was not rewritten: {error}")
            return
        with self._lock:
            for location, body, codec in bodies:
                self._append(location, body, codec)
            self._copied[name.hex()] = sum(RECORD.size + location.stored for location, _, _ in bodies)
        self._uploads.make_room(_SPOOL_LIMIT)

    def _read(self, chunks: Sequence[Location]) -> list[_Body]:
        """Return the chunks as they were compressed; each was checked against its id."""
        pack = chunks[0].pack
        reader = PackReader(self._keys, pack)
        bodies: list[_Body] = []
        for run in self._repository.trees.chunks.runs_of(chunks):
            start = run[0].offset
            length = run[-1].offset + RECORD.size + run[-1].stored - start
            data = memoryview(self._store.get(layout.pack(pack.name), start, length))
            for each in run:
                at = each.offset - start
                bodies.append((each, *self._body(reader, data[at : at + RECORD.size + each.stored], each)))
        return bodies

    def _body(self, reader: PackReader, record: memoryview, wanted: Location) -> tuple[Buffer, int]:
        try:
            return reader.body(record, wanted)
        except IntegrityError:  # it may have been damaged on its way
            length = RECORD.size + wanted.stored
            again = self._store.get(layout.pack(wanted.pack.name), wanted.offset, length)
            try:
                return reader.body(memoryview(again), wanted)
            except IntegrityError as error:
                raise IntegrityError(f"chunk {wanted.id.hex()} at {wanted.offset}: {error}") from error

    def _append(self, location: Location, body: Buffer, codec: int) -> None:
        with spooling(self._spool.folder / "packs"):
            if self._current is None:
                self._current = PackWriter(self._keys.newest, self._spool.new_pack())
            self._current.append(location.id, body, location.raw, codec)
        if self._current.full(self._repository.format.pack_most):
            self._finish()

    def _finish(self) -> None:
        if self._current is None:
            return
        with spooling(self._spool.folder / "packs"):
            pack = self._current.finish()
            self._spool.keep_pack(self._current.path, pack)
        self._current = None
        self._finished.append(pack)
        self._uploads.add(pack.info)

    def _commit_all(self) -> bool:
        names = map(bytes.fromhex, self._copied)
        return commit(self._repository, self._session, self._finished, names)

    def _decide(self, decision: Decision) -> Decision:
        return decide(self._store, self._keys, layout.repacked(self._session), decision)

    def _close(self) -> None:
        if self._current is not None:
            self._current.abandon()
            self._current = None
        self._uploads.stop()
        self._spool.close()
