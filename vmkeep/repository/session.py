"""One writer's stay in the repository; it ends in exactly one decision.

    open/<session>  ->  condemned list, index  ->  save, record, upload ...  ->  index/<session>  ->  decision

`open/` comes first: a collector that does not see it condemned its packs before we read its list, and
one that sees it waits for our decision, or takes it (VOID). Nothing here depends on a clock or a lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Final

from vmkeep.errors import AccessError, ConflictError, IntegrityError, NotFoundError
from vmkeep.repository import layout, scrubbed, sealed
from vmkeep.repository.committed import INDEX_KIND
from vmkeep.repository.decision import Decision, decide, decode
from vmkeep.repository.forgotten import is_forgotten
from vmkeep.repository.index import Index
from vmkeep.repository.packer import Packer
from vmkeep.repository.presence import leave
from vmkeep.repository.records import decode_component, encode_component, from_json, to_json
from vmkeep.repository.sample import deviation
from vmkeep.repository.save_disk import Inherited, save_disk
from vmkeep.repository.save_stream import save_stream
from vmkeep.repository.trees import leaf_chunks
from vmkeep.repository.uploads import Uploads
from vmkeep.units import GiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from vmkeep.disks.device import DiskSource, Extent
    from vmkeep.repository.crypto import Buffer
    from vmkeep.repository.index import PackInfo
    from vmkeep.repository.manifest import DiskRef, Point, SavedComponent, Stats, StreamRef
    from vmkeep.repository.repository import Repository
    from vmkeep.repository.spool import Spool

SPOOL_LIMIT: Final = 2 * GiB


@dataclass(frozen=True, slots=True)
class Origin:
    """What a session is for."""

    vm: str
    run: str
    fleet: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a session is; kept in its spool."""

    session: str
    nonce: str
    """Tells our decision from another's."""
    origin: Origin


class _LeafDeniedError(AccessError):
    """These credentials may not read packs, and so no leaves."""


class Session:
    """Saves components of one VM. Safe to use from several threads.

    Made by `Repository.begin`. Everything that `record` returned for survives a crash, and is continued by
    the next `begin` with the same spool and run.
    """

    def __init__(
        self, repository: Repository, identity: Identity, spool: Spool, *, resumed: bool, spool_limit: int
    ) -> None:
        self._repository = repository
        self._identity = identity
        self._spool = spool
        self._limit = spool_limit
        self._lock = threading.RLock()
        self.resumed = resumed
        """Whether it continues what an earlier process began."""
        self._sealed: Point | None = None
        condemned = repository.committed.collections.pending()
        known = repository.committed.refresh()
        # What was found to be damaged is stored again, as far as the VM still holds it.
        broken = scrubbed.broken(repository.store, repository.keys)
        condemned |= broken.intersection(pack.name for pack in known.packs) if broken else broken
        # Where an index is lost, chunks below an inherited leaf may be too: they are looked up one by one.
        self._doubtful = bool(condemned or repository.committed.lost)
        self._uploads = Uploads(repository.store, spool)
        self._packer = Packer(
            repository.keys,
            spool,
            Index.merge([known], without=condemned) if condemned else known,
            most=repository.format.pack_most,
            finished=self._finished,
        )
        self._components = {name: self._read_component(name, data) for name, data in spool.components()}

    @property
    def id(self) -> str:
        """The session's id; sorts by the time at which it began."""
        return self._identity.session

    @property
    def vm(self) -> str:
        """The VM it saves."""
        return self._identity.origin.vm

    @property
    def run(self) -> str:
        """The run it belongs to."""
        return self._identity.origin.run

    def save_disk(
        self,
        source: DiskSource,
        *,
        parent: DiskRef | None = None,
        changed: Iterable[Extent] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[DiskRef, Stats]:
        """Save a disk; holes are neither read nor stored.

        Args:
            parent: the same disk in an earlier point.
            changed: all ranges that may differ from *parent*: only these are read. Without it, all extents
                are read, and what the repository has already is not stored again. So it is too where the
                credentials may not read packs and the leaves of *parent* are needed (see `roles`).
            progress: told how many bytes were read since the last call.

        Raises:
            SourceError: the disk is not readable.
            TemporaryError: the spool's disk is full, or it is at its limit and the store is away.
        """
        format_ = self._repository.format
        if parent is not None and changed is not None:
            doubtful = self._doubtful or not self._is_kept(parent)
            inherited = Inherited(
                parent, changed, lambda leaf: self._inheritable(leaf, doubtful=doubtful), self._read_leaf
            )
            with contextlib.suppress(_LeafDeniedError):
                return save_disk(source, self._packer, format_, inherited, progress)
        return save_disk(source, self._packer, format_, None, progress)

    def deviation(self, source: DiskSource, parent: DiskRef, changed: Iterable[Extent]) -> int | None:
        """Return where a disk differs from an earlier point though nothing is said to have changed there.

        Samples are compared; see `sample`.

        Raises:
            SourceError: the disk is not readable.
        """
        return deviation(source, parent, changed, self._repository.trees)

    def save_stream(
        self, blocks: Iterable[Buffer], *, progress: Callable[[int], None] | None = None
    ) -> tuple[StreamRef, Stats]:
        """Save a stream of bytes, such as a dump; each block is used up before the next is asked for.

        Raises:
            TemporaryError: as in `save_disk`.
        """
        repository = self._repository
        return save_stream(blocks, self._packer, repository.format, repository.keys.newest.cut, progress)

    def record(self, component: SavedComponent) -> None:
        """Keep a component that was saved; it survives a crash once this returns.

        Raises:
            TemporaryError: the spool's disk is full.
        """
        layout.check_name("component", component.name)
        self._packer.flush()
        packs = frozenset(self._packer.packs)
        record = {"component": encode_component(component), "packs": sorted(name.hex() for name in packs)}
        key = self._component_key(component.name)
        self._spool.write_component(
            component.name, sealed.seal(self._repository.keys, "component", key, to_json(record))
        )
        self._components[component.name] = (component, packs)

    def recorded(self) -> dict[str, SavedComponent]:
        """Return the components that were recorded, also by an earlier process, by name."""
        return {name: component for name, (component, _) in self._components.items()}

    def upload(self, component: str | None = None) -> None:
        """Put what is not in the store yet: for one recorded component, or all that is in finished packs.

        Finished packs are put in the background all the time; this waits for the rest, and tries again
        what went wrong.

        Raises:
            TemporaryError: the store is away; a second call continues, and nothing is read again.
            NotFoundError: the component was not recorded.
        """
        if component is None:
            self._uploads.upload()
            return
        if component not in self._components:
            raise NotFoundError(f"component {component} of {self.vm} was not saved in session {self.id}")
        self._uploads.upload(self._components[component][1])

    def uploaded(self, component: str) -> bool:
        """Tell whether the component was recorded and all its packs are in the store."""
        return component in self._components and self._uploads.done(self._components[component][1])

    def seal(self, point: Point) -> Point:
        """Make the recovery point exist, and return it as it stands; a second call returns the same.

        Args:
            point: its `vm`, `session` and `run` are set to the session's; `sealed` to now if it is empty.

        Raises:
            IntegrityError: a component was not recorded, or not uploaded.
            ConflictError: the session was declared dead, or an earlier call, whose answer was lost, sealed it
                with other components; begin another one.
            TemporaryError: the store is away; it may be sealed. A second call finds out.
        """
        with self._lock:
            if self._sealed is None:
                self._check_complete(point)
                self._sealed = self._standing()
            if self._sealed is None:
                self._put_index()
                self._sealed = self._decide(self._stamped(point)).point
            if self._sealed is None:
                self._discard()
                raise ConflictError(
                    f"session {self.id} of {self.vm} was declared dead before it sealed its point; "
                    "nothing of it counts: back up again"
                )
            self._discard()
            if _saved(self._sealed) != _saved(point):
                raise ConflictError(
                    f"session {self.id} of {self.vm} was sealed before, with other components "
                    f"({', '.join(sorted(self._sealed.components)) or 'none'}); back up the others again"
                )
            return self._sealed

    def void(self, reason: str) -> None:
        """Decide that the session made no point, and forget what it saved.

        Raises:
            ConflictError: it was sealed before.
            TemporaryError: the store is away; call again.
        """
        with self._lock:
            if self._decide(None, reason).point is not None:
                raise ConflictError(f"session {self.id} of {self.vm} was sealed; it cannot become void")
            self._discard()

    def close(self) -> None:
        """Leave the session; the spool keeps it for the next `begin`. A second call does nothing."""
        self._packer.abandon()
        self._uploads.stop()
        self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finished(self, pack: PackInfo) -> None:
        self._uploads.add(pack)
        self._uploads.make_room(self._limit)

    def _inheritable(self, leaf: bytes, *, doubtful: bool) -> bool:
        if not self._packer.has(leaf):
            return False
        return not doubtful or all(map(self._packer.has, leaf_chunks(self._read_leaf(leaf))))

    def _is_kept(self, disk: DiskRef) -> bool:
        """Tell whether a point has this disk that is kept, now that a collector would wait for us.

        Of a forgotten one, chunks may be deleted whose leaf is still there.
        """
        return any(
            disk in component.disks.values()
            for point in self._repository.newest_first(self.vm)
            for component in point.components.values()
        )

    def _read_leaf(self, leaf: bytes) -> bytes:
        try:
            return bytes(self._repository.trees.chunks.get(leaf))
        except AccessError as error:
            raise _LeafDeniedError(str(error)) from error

    def _component_key(self, name: str) -> str:
        return f"{self.id}/{name}"

    def _read_component(self, name: str, data: bytes) -> tuple[SavedComponent, frozenset[bytes]]:
        key = self._component_key(name)
        record = from_json(sealed.unseal(self._repository.keys, "component", key, data), key)
        packs = frozenset(bytes.fromhex(pack) for pack in record["packs"])
        return decode_component(record["component"]), packs

    def _check_complete(self, point: Point) -> None:
        for name, component in point.components.items():
            kept = self._components.get(name)
            if kept is None or kept[0] != component:
                raise IntegrityError(
                    f"component {name} of {self.vm} was not recorded; its point is not sealed"
                )
            if not self._uploads.done(kept[1]):
                raise IntegrityError(
                    f"component {name} of {self.vm} is not uploaded; its point is not sealed"
                )

    def _stamped(self, point: Point) -> Point:
        return dataclasses.replace(
            point,
            vm=self.vm,
            session=self.id,
            run=self.run,
            fleet=point.fleet or self._identity.origin.fleet,
            sealed=point.sealed or datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _standing(self) -> Point | None:
        """Return the point if it was sealed before.

        Its index must not be put again then: a collector may have removed it already.

        Raises:
            ConflictError: it was sealed and is forgotten.
        """
        key = layout.decision(self.vm, self.id)
        with contextlib.suppress(NotFoundError):
            return decode(self._repository.keys, key, self._repository.store.get(key)).point
        # Asked second: a point is removed behind its tombstone.
        if is_forgotten(self._repository.store, self.id):
            self._discard()
            raise ConflictError(f"session {self.id} of {self.vm} sealed a point that was forgotten since")
        return None

    def _put_index(self) -> None:
        """Put where the uploaded chunks lie; in a second part what the first, of an earlier try, has not."""
        packs = {
            name: pack for name, pack in self._packer.packs.copy().items() if self._uploads.done((name,))
        }
        store, keys = self._repository.store, self._repository.keys
        for part in count(1):
            if not packs and part > 1:
                return
            key = layout.index(self.id, part)
            body = Index.of_packs((pack.info, pack.entries) for pack in packs.values()).encode()
            if store.put_if_absent(key, sealed.seal(keys, INDEX_KIND, key, body)):
                return
            there = Index.decode(sealed.unseal(keys, INDEX_KIND, key, store.get(key)))
            for pack in there.packs:
                packs.pop(pack.name, None)

    def _decide(self, point: Point | None, reason: str = "") -> Decision:
        key = layout.decision(self.vm, self.id)
        decision = Decision(self._identity.nonce, point, reason)
        return decide(self._repository.store, self._repository.keys, key, decision)

    def _discard(self) -> None:
        """Leave the repository and drop the spool: the session is decided."""
        self._packer.abandon()
        self._uploads.stop()
        leave(self._repository.store, self.id)
        self._spool.remove()


def _saved(point: Point) -> dict[str, tuple[object, object]]:
    """Return what a point holds: the rest of a component may be other, where it was saved once more."""
    return {name: (dict(each.disks), dict(each.streams)) for name, each in point.components.items()}
