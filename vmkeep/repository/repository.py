"""The repository: recovery points of many VMs in one store, deduplicated, compressed, encrypted."""

from __future__ import annotations

import secrets
import shlex
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from vmkeep.errors import ConflictError, InputError, IntegrityError, NotFoundError
from vmkeep.repository import drills, keyslot, layout, locks, pins, runs, slots
from vmkeep.repository.access import Access
from vmkeep.repository.begin import begin
from vmkeep.repository.check import PackFault, QuickReport, check_packs, missing_packs
from vmkeep.repository.chunks import Chunks
from vmkeep.repository.collect import DEAD_AFTER, Collected, Unneeded, collect, unneeded
from vmkeep.repository.committed import CommittedIndex, PointInfo, list_points
from vmkeep.repository.crypto import KEY_SIZE, Keys
from vmkeep.repository.forgotten import forget
from vmkeep.repository.format import Format
from vmkeep.repository.holds import Hold, hold, holds, release
from vmkeep.repository.points import Points
from vmkeep.repository.read_disk import SavedDisk
from vmkeep.repository.read_stream import read_stream
from vmkeep.repository.restore_disk import restore_disk
from vmkeep.repository.scrub import ScrubReport, scrub
from vmkeep.repository.session import SPOOL_LIMIT, Origin
from vmkeep.repository.trees import Trees
from vmkeep.repository.verify import Sample, VerifyReport, verify
from vmkeep.stores.probe import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import timedelta
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from vmkeep.disks.device import DiskSource, DiskTarget
    from vmkeep.repository.index import Index
    from vmkeep.repository.locks import Extended
    from vmkeep.repository.manifest import DiskRef, Point, StreamRef
    from vmkeep.repository.secret import Opener
    from vmkeep.repository.session import Session
    from vmkeep.stores.base import Store


class Repository:
    """A repository that was opened with a secret. Safe to use from several threads."""

    def __init__(
        self,
        store: Store,
        format_: Format,
        masters: Sequence[bytes],
        *,
        more: Callable[[], Sequence[bytes]] | None = None,
        cache: Path | None = None,
    ) -> None:
        """Made by `init` and `open`.

        Args:
            masters: the master keys of all data epochs.
            more: returns them anew, with those of epochs that were begun since.
        """
        self.store = store
        self.format = format_
        self.keys = Keys(masters, format_.repository, more)
        self.committed = CommittedIndex(store, self.keys, cache)
        self.trees = Trees(Chunks(store, self.keys, self._index), format_.disk_leaf)
        self.access = Access(self)
        self._points = Points(store, self.keys)
        self._probed = False

    @classmethod
    def init(
        cls,
        store: Store,
        secret: Opener,
        *,
        slot: str = "default",
        cache: Path | None = None,
        parameters: Format | None = None,
    ) -> Self:
        """Make a repository in *store*; what an interrupted call left is completed.

        Args:
            parameters: how data is cut and packed; by default as measured to be best.

        Raises:
            InputError: there is a repository, or the store is not fit for one.
        """
        probe(store)
        data = (parameters or Format.new()).encode()
        if not store.put_if_absent(layout.FORMAT, data):
            data = store.get(layout.FORMAT)
        format_ = Format.decode(data)
        master = secrets.token_bytes(KEY_SIZE)
        taken = slots.names(store)
        wrapped = keyslot.wrap(master, secret, slot, data)
        if taken or not slots.put_own(store, layout.key_slot(slot), wrapped):
            raise InputError(f"{store.url} holds a repository already; open it, or use another place")
        more = partial(slots.unlock, store, secret, None, data)
        return cls(store, format_, (master,), more=more, cache=cache)

    @classmethod
    def open(
        cls, store: Store, secret: Opener, *, slot: str | None = None, cache: Path | None = None
    ) -> Self:
        """Open the repository in *store* with any slot, or the one named.

        Args:
            cache: a folder for index objects, encrypted; worth it when the store is far away.

        Raises:
            NotFoundError: there is no repository.
            AccessError: the key is wrong.
            IntegrityError: the format object or the key slot is damaged.
            UnsupportedError: a newer vmkeep made it.
        """
        try:
            data = store.get(layout.FORMAT)
        except NotFoundError:
            raise NotFoundError(f"{store.url} holds no repository; make one with 'vmkeep init'") from None
        format_ = Format.decode(data)
        format_.require("read")
        more = partial(slots.unlock, store, secret, slot, data)
        return cls(store, format_, more(), more=more, cache=cache)

    def begin(  # noqa: PLR0913  (each is a keyword, and none belongs to another)
        self,
        *,
        vm: str,
        run: str,
        spool: Path,
        fleet: str = "",
        spool_limit: int = SPOOL_LIMIT,
        moment: datetime | None = None,
    ) -> Session:
        """Begin to save a VM, or continue what an interrupted process of the same *run* began.

        Args:
            run: the backup run; what another run left in the spool is dropped, for it saw another snapshot.
            spool: a folder for this VM on the local disk.
            spool_limit: bytes of packs in the spool above which saving waits for uploads.
            moment: the time by which the point is sorted among others; by default behind all of the VM.

        Raises:
            ConflictError: another process uses the spool, or the session was declared dead: begin anew.
            InputError: the store is not fit for a repository, or the spool is another VM's.
            UnsupportedError: the repository has features that this vmkeep cannot write.
            AccessError: a new data epoch was begun, which this key does not open.
        """
        self.format.require("write")
        if not self._probed:
            probe(self.store)
            self._probed = True
        self.access.keep_up()
        return begin(self, Origin(vm, run, fleet), spool, spool_limit, moment)

    def list_points(self, vm: str | None = None) -> list[PointInfo]:
        """Return what a listing says of the recovery points, oldest first; reads none."""
        return list_points(self.store, vm)

    def points(
        self,
        vm: str | None = None,
        *,
        damaged: Callable[[PointInfo, IntegrityError], None] | None = None,
    ) -> list[Point]:
        """Return the recovery points, oldest first.

        Args:
            damaged: called for each point that cannot be read, which is left out then.

        Raises:
            IntegrityError: a point is damaged, and *damaged* is not given.
        """
        return self._points.all(vm, damaged)

    def load(self, info: PointInfo, body: bytes | None = None) -> Point:
        """Return the point of a listing.

        Args:
            body: its object, where that is known.

        Raises:
            NotFoundError: it was forgotten and removed since.
            IntegrityError: it is damaged.
        """
        return self._points.load(info, body)

    def point(self, vm: str, session_id: str = "latest") -> Point:
        """Return one recovery point, by its session's id, the beginning of it, or `latest`.

        In a repository of copies the id of an original finds its copy.

        Raises:
            NotFoundError: there is none.
            InputError: the beginning fits several.
            IntegrityError: it is damaged.
        """
        return self._points.load(self.find(vm, session_id), None)

    def find(self, vm: str, session_id: str) -> PointInfo:
        """Return what a listing says of the point that `point` returns, also when it is damaged.

        Raises:
            NotFoundError: there is none.
            InputError: the beginning fits several.
        """
        return self._points.find(vm, session_id)

    def newest_first(self, vm: str) -> Iterator[Point]:
        """Yield the recovery points of a VM, newest first; what is damaged or gone is passed over."""
        return self._points.newest_first(vm)

    def restore_disk(
        self,
        ref: DiskRef,
        target: DiskTarget,
        *,
        what: str = "disk",
        present: DiskSource | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Write a whole disk; holes only where the target is not fresh.

        Args:
            what: how messages call the disk.
            present: a disk that may hold some of it at the same offsets; what it holds is not fetched.
            progress: told how many bytes of the disk, holes included, were dealt with; from any thread.

        Returns:
            How many bytes were taken from *present*.

        Raises:
            InputError: the target is too small.
            IntegrityError: stored data is missing or damaged; the target is incomplete then.
        """
        return restore_disk(ref, target, self.trees, what=what, present=present, progress=progress)

    def open_disk(self, ref: DiskRef, *, patience_s: float = 0.0) -> SavedDisk:
        """Open a saved disk for reading anywhere in it.

        Args:
            patience_s: how long a reader waits for a store that is away.
        """
        return SavedDisk(ref, self.trees, patience_s=patience_s)

    def read_stream(self, ref: StreamRef, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a stream from *start*, in blocks of any size.

        Raises:
            IntegrityError: a chunk is missing or damaged; what was yielded before is right.
        """
        return read_stream(ref, self.trees, start, length)

    def verify(
        self,
        point: Point,
        *,
        share: float = 1.0,
        seed: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> VerifyReport:
        """Read back a *share* (0 to 1) of a point's chunks, drawn with *seed*, and every leaf.

        Raises:
            TemporaryError: the store is away.
        """
        return verify(point, self.trees, Sample(share, seed), progress)

    def scrub(
        self,
        *,
        share: float = 1.0,
        now: datetime | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> ScrubReport:
        """Read back a *share* (0 to 1) of all that is stored: what was not read for the longest time.

        Damage is told with all recovery points that it concerns.

        Raises:
            TemporaryError: the store is away.
        """
        return scrub(self, share=share, now=now, progress=progress)

    def check_objects(self) -> list[PackFault]:
        """Return the packs of committed sessions that are missing or have another size; reads none."""
        return missing_packs(self.store, self.committed)

    def check_packs(self, *, share: float = 1.0, now: datetime | None = None) -> QuickReport:
        """Compare the packs with what is known of them: all by size, a *share* by checksum; reads none.

        Raises:
            TemporaryError: the store is away.
        """
        return check_packs(self.store, self.keys, self.committed, share=share, now=now)

    def reading(self, *points: Point) -> AbstractContextManager[None]:
        """Keep what *points*, one of a VM, are made of from being collected, as long as the context is open.

        Raises:
            NotFoundError: one was forgotten.
        """
        return pins.reading(self.store, self.keys, {point.vm: point.session for point in points})

    def pin(self, points: Mapping[str, str], reader: str) -> dict[str, bytes]:
        """Keep what *points* (VM to session) are made of until `unpin`, also behind the end of this process.

        Args:
            reader: from `pins.new_reader`; a second call with the same does nothing.

        Returns:
            Their objects, for `load`: these may be removed meanwhile.

        Raises:
            NotFoundError: one was forgotten.
            TemporaryError: the store is away.
        """
        return pins.pin(self.store, self.keys, points, reader)

    def pinned(self, reader: str) -> bool:
        """Tell whether what *reader* pinned was kept until now; without it, `pin` asks what is left."""
        return pins.pinned(self.store, reader)

    def renew(self, reader: str, *, now: datetime | None = None) -> bool:
        """Let what *reader* pinned be kept as if it was pinned now; tell whether it was kept until now."""
        return pins.renew(self.store, reader, now)

    def unpin(self, reader: str) -> None:
        """Let go of what *reader* pinned; a second call does nothing."""
        pins.unpin(self.store, reader)

    def hold(self, point: Point, *, name: str, reason: str, until: datetime | None = None) -> Hold:
        """Let a recovery point not be forgotten until the hold is released, or over.

        Raises:
            InputError: the hold has no name, or would be over already.
            ConflictError: it is held under this name already.
            NotFoundError: it was forgotten.
        """
        return hold(
            self.store, self.keys, vm=point.vm, session=point.session, name=name, reason=reason, until=until
        )

    def holds(self, point: Point | PointInfo | None = None) -> list[Hold]:
        """Return the holds that are not released, of one point or of all; also those that are over."""
        return holds(self.store, self.keys, None if point is None else point.session)

    def release(self, hold: Hold, reason: str) -> None:
        """Let a hold not count any more; a second call does nothing."""
        release(self.store, self.keys, hold, reason)

    def forget(self, point: Point | PointInfo, reason: str) -> None:
        """Let a recovery point not count any more; what only it needs is deleted by `collect`.

        Of one that is damaged, what a listing says of it will do.

        Raises:
            ConflictError: it is held.
            TemporaryError: the store is away; call again.
        """

        def check() -> None:
            for one in self.holds(point):
                if one.active(datetime.now(UTC)):
                    raise ConflictError(
                        f"recovery point {point.session} of {point.vm} is held as {one}; it is not forgotten "
                        f"before 'vmkeep unhold {point.vm} {point.session} --name {shlex.quote(one.name)}'"
                    )

        forget(self.store, self.keys, vm=point.vm, session=point.session, reason=reason, check=check)

    def collect(
        self,
        *,
        now: datetime | None = None,
        dead_after: timedelta = DEAD_AFTER,
        repack_below: float = 0.0,
        renew: bool = False,
    ) -> Collected:
        """Delete what no recovery point needs; backups and restores may run meanwhile.

        Args:
            now: the time, by which it is decided who is dead; by default the machine's clock.
            dead_after: a session that began longer ago and is not decided is taken for dead. Whom it would
                have to wait for otherwise, it leaves to a later collection.
            repack_below: packs of which less than this share (0 to 1) is needed are rewritten before.
            renew: so are all packs of earlier data epochs, with the keys of the newest.

        Raises:
            IntegrityError: a point that is kept is damaged; nothing is deleted then.
            UnsupportedError: the repository has features that this vmkeep cannot collect.
            TemporaryError: the store is away; a later collection carries on.
        """
        self.access.keep_up()
        return collect(self, now=now, dead_after=dead_after, repack_below=repack_below, renew=renew)

    def extend_locks(self, *, now: datetime | None = None) -> Extended:
        """Lock on what recovery points need, where objects are locked and less is left than is promised.

        Raises:
            TemporaryError: the store is away; what was extended stays so.
            AccessError: the credentials may not look at locks.
        """
        return locks.extend(self, now=now)

    def unneeded(self, *, without: frozenset[str] = frozenset(), repack_below: float = 0.0) -> Unneeded:
        """Return what `collect` would delete and rewrite; changes nothing.

        Args:
            without: sessions whose points are taken for forgotten.
        """
        return unneeded(self, without=without, repack_below=repack_below)

    def put_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Keep the record of a run; a second call with the same record does nothing.

        Raises:
            ConflictError: another record was kept under this id.
        """
        runs.put(self.store, self.keys, run_id, record)

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return the records of all runs by id.

        Raises:
            IntegrityError: one is damaged.
        """
        return runs.read(self.store, self.keys)

    def put_drill(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Keep what a drill proved; a second call with the same record does nothing.

        Raises:
            ConflictError: another record was kept under this id.
        """
        drills.put(self.store, self.keys, run_id, record)

    def drills(self) -> dict[str, dict[str, Any]]:
        """Return what drills proved, by the id of their runs, oldest first.

        No restore needs them: one that is damaged, or not for us to read, is as if there had been no drill.
        """
        return drills.read(self.store, self.keys)

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _index(self, wider: bool) -> Index:  # noqa: FBT001  (one caller, which asks twice)
        return self.committed.widest() if wider else self.committed.current()
