"""Copy recovery points into another repository: with its own key, its own cuts, and only what it lacks.

    source   point A (old)  point B                     chunk ids, keys and cuts of the two repositories
    target   point A'       B' = A' + what differs      have nothing in common: data is read and saved anew

What differs between A and B is seen in the trees of the source, so that only these ranges are read. A copy
keeps the time of its original in its session's id, so that points stay in order whenever they were copied.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.disks.device import Extent
from vmkeep.errors import NotFoundError
from vmkeep.repository.layout import time_of_session
from vmkeep.repository.manifest import SavedComponent, Stats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vmkeep.errors import IntegrityError
    from vmkeep.repository.committed import PointInfo
    from vmkeep.repository.manifest import DiskRef, Point
    from vmkeep.repository.repository import Repository
    from vmkeep.repository.session import Session
    from vmkeep.repository.trees import Trees


@dataclass(frozen=True, slots=True)
class _Base:
    """A point that both repositories have."""

    original: Point
    copy: Point


def missing(
    source: Repository,
    target: Repository,
    vm: str,
    *,
    last: int | None = None,
    damaged: Callable[[PointInfo, IntegrityError], None] | None = None,
) -> list[Point]:
    """Return the points of a VM that *target* has no copy of, oldest first.

    Args:
        last: look only at so many of the newest points; by default at all.
        damaged: called for each that cannot be read, and so not be copied.

    Raises:
        IntegrityError: a point is damaged, and *damaged* is not given.
    """
    there = frozenset(origins(target, vm))
    times = {time_of_session(one) for one in there}
    unread: list[tuple[PointInfo, IntegrityError]] = []
    points = source.points(vm, damaged=lambda info, error: unread.append((info, error)))
    newest = points[-(last or len(points)) :]
    for info, error in unread:
        if time_of_session(info.session) in times or (last and newest and info.session < newest[0].session):
            continue
        if damaged is None:
            raise error
        damaged(info, error)
    return [point for point in newest if origin(point) not in there]


def origin(point: Point) -> str:
    """Return the session that saved what *point* holds, also when it is a copy, or the copy of one."""
    return point.copy_of or point.session


def origins(target: Repository, vm: str) -> dict[str, Point]:
    """Return the points of a VM that can be read, by the sessions that first saved them."""
    return {origin(point): point for point in _readable(target, vm)}


def copy_point(  # noqa: PLR0913  (each is a keyword, and none belongs to another)
    point: Point,
    source: Repository,
    target: Repository,
    *,
    run: str,
    spool: Path,
    progress: Callable[[int], None] | None = None,
) -> Point:
    """Copy one point, and return the copy; one that was interrupted goes on where it was.

    Args:
        run: the same again continues what an interrupted call left in the spool.
        spool: a folder for this VM on the local disk.
        progress: told how many bytes were read since the last call.

    Raises:
        IntegrityError: something of the point is damaged in *source*: there is no copy then.
        ConflictError: another process copies it, or the session was declared dead: call again.
        TemporaryError: a store is away; call again.
    """
    moment = time_of_session(origin(point))
    with contextlib.ExitStack() as stack:
        stack.enter_context(source.reading(point))
        base = _base(point, source, target)
        try:
            if base is not None:
                stack.enter_context(source.reading(base.original))
        except NotFoundError:  # forgotten since: everything is read then
            base = None
        session = stack.enter_context(
            target.begin(
                vm=point.vm, run=f"{run}.{origin(point)}", spool=spool, fleet=point.fleet, moment=moment
            )
        )
        copier = _Copier(source, session, base, progress)
        for component in point.components.values():
            if component.name not in session.recorded():
                session.record(copier.component(component))
            session.upload(component.name)
        copied = session.recorded()
        return session.seal(
            dataclasses.replace(
                point,
                copy_of=origin(point),
                components={name: copied[name] for name in point.components},
                parent=base.copy.session if base else None,
            )
        )


def differences(trees: Trees, old: DiskRef, new: DiskRef) -> Iterator[Extent]:
    """Yield the ranges of *new* that may differ from *old*: two disks of one repository.

    Leaves that are equal are not read. The end of a disk that grew is left to who saves it.
    """
    size = min(old.size, new.size)
    if old.chunk_size != new.chunk_size:
        yield Extent(0, size)
        return
    for number, leaf in enumerate(new.leaves):
        if number >= len(old.leaves) or leaf == old.leaves[number]:
            continue
        start, _ = trees.disk_span(new, number)
        pairs = zip(trees.disk_leaf(old, number), trees.disk_leaf(new, number), strict=False)
        for below, (before, after) in enumerate(pairs):
            at = start + below * new.chunk_size
            if before != after and at < size:
                yield Extent(at, min(new.chunk_size, size - at))


def _base(point: Point, source: Repository, target: Repository) -> _Base | None:
    """Return the newest point up to *point* that both have, or the oldest after it."""
    copies = origins(target, point.vm)
    both = [
        _Base(one, copies[origin(one)])
        for one in _readable(source, point.vm)
        if origin(one) in copies and origin(one) != origin(point)
    ]
    before = [one for one in both if origin(one.original) < origin(point)]
    if before:
        return before[-1]
    return both[0] if both else None


def _readable(repository: Repository, vm: str) -> list[Point]:
    return [*repository.newest_first(vm)][::-1]


class _Copier:
    def __init__(
        self,
        source: Repository,
        session: Session,
        base: _Base | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._source, self._session, self._base, self._progress = source, session, base, progress

    def component(self, component: SavedComponent) -> SavedComponent:
        """Save what *component* holds in the target."""
        disks, streams, stats = {}, {}, Stats()
        for name, disk in component.disks.items():
            disks[name], cost = self._disk(component.name, name, disk)
            stats += cost
        for name, stream in component.streams.items():
            streams[name], cost = self._session.save_stream(
                self._source.read_stream(stream), progress=self._progress
            )
            stats += cost
        return dataclasses.replace(component, disks=disks, streams=streams, stats=stats)

    def _disk(self, component: str, name: str, disk: DiskRef) -> tuple[DiskRef, Stats]:
        old = self._in(self._base.original, component, name) if self._base else None
        parent = self._in(self._base.copy, component, name) if self._base else None
        changed = None
        if old is not None and parent is not None and parent.size == old.size:
            changed = tuple(differences(self._source.trees, old, disk))
        with self._source.open_disk(disk) as opened:
            return self._session.save_disk(opened, parent=parent, changed=changed, progress=self._progress)

    @staticmethod
    def _in(point: Point, component: str, disk: str) -> DiskRef | None:
        saved = point.components.get(component)
        return saved.disks.get(disk) if saved else None
