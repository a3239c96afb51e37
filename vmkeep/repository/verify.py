"""Read back what a recovery point is made of, all or a sample, and say exactly what is damaged."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.errors import IntegrityError
from vmkeep.repository.save_disk import HOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vmkeep.repository.chunks import Fetched
    from vmkeep.repository.manifest import DiskRef, Point, StreamRef
    from vmkeep.repository.trees import Trees


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk belongs."""

    component: str
    item: str
    """`disk NAME` or `stream NAME`."""
    offset: int
    length: int
    """Bytes of the disk or stream that are concerned."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that cannot be restored."""

    vm: str
    session: str
    place: Place
    problem: str
    """Names pack and chunk."""

    def __str__(self) -> str:
        place = self.place
        return (
            f"{self.vm}/{place.component} of {self.session}: {place.item}, {place.length} bytes at "
            f"{place.offset}: {self.problem}"
        )


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was read back."""

    chunks: int
    size: int
    """Bytes of these chunks."""
    damages: tuple[Damage, ...]

    @property
    def sound(self) -> bool:
        """Whether all that was read is right."""
        return not self.damages


@dataclass(frozen=True, slots=True)
class Sample:
    """Which chunks are read back."""

    share: float = 1.0
    """0 to 1."""
    seed: int | None = None
    """Draws the same chunks again; by default others each time."""


def verify(
    point: Point, trees: Trees, sample: Sample, progress: Callable[[int], None] | None = None
) -> VerifyReport:
    """Read all leaves of *point* and a sample of its chunks."""
    return _Verification(point, trees, sample, progress).run()


def damages_of(point: Point, trees: Trees, lost: Mapping[bytes, str]) -> list[Damage]:
    """Return what of *point* cannot be restored without the chunks in *lost*, each with its reason."""
    return _Verification(point, trees, Sample(), None).concerned(lost)


class _Verification:
    def __init__(
        self, point: Point, trees: Trees, sample: Sample, progress: Callable[[int], None] | None
    ) -> None:
        self._point, self._trees, self._progress = point, trees, progress
        self._share = sample.share
        self._draw = random.Random(sample.seed)  # noqa: S311  (draws a sample, no secret)
        self._lock = threading.Lock()
        self._count = self._size = 0
        self._damages: list[Damage] = []

    def run(self) -> VerifyReport:
        for component, item, groups in self._items():
            self._check(component, item, groups)
        return VerifyReport(self._count, self._size, tuple(sorted(self._damages, key=_order)))

    def concerned(self, lost: Mapping[bytes, str]) -> list[Damage]:
        for component, item, groups in self._items():
            for group in groups:
                if group.problem:
                    self._damaged(component, item, (group.start, group.length), group.problem)
                for chunk in lost.keys() & group.places.keys():
                    for place in group.places[chunk]:
                        self._damaged(component, item, place, lost[chunk])
        return sorted(self._damages, key=_order)

    def _items(self) -> Iterator[tuple[str, str, Iterator[_Group]]]:
        for component in self._point.components.values():
            for name, disk in component.disks.items():
                yield component.name, f"disk {name}", self._disk(disk)
            for name, stream in component.streams.items():
                yield component.name, f"stream {name}", self._stream(stream)

    def _disk(self, ref: DiskRef) -> Iterator[_Group]:
        for number in range(len(ref.leaves)):
            start, end = self._trees.disk_span(ref, number)
            group = _Group(start, end - start)
            try:
                for below, chunk in enumerate(self._trees.disk_leaf(ref, number)):
                    if chunk != HOLE:
                        at = start + below * ref.chunk_size
                        group.places[chunk].append((at, min(ref.chunk_size, end - at)))
            except IntegrityError as error:
                group.problem = str(error)
            yield group

    def _stream(self, ref: StreamRef) -> Iterator[_Group]:
        start = 0
        for leaf in ref.leaves:
            group = _Group(start, leaf.length)
            try:
                for at, length, chunk in self._trees.stream_leaf(leaf, start):
                    group.places[chunk].append((at, length))
            except IntegrityError as error:
                group.problem = str(error)
            start += leaf.length
            yield group

    def _check(self, component: str, item: str, groups: Iterator[_Group]) -> None:
        for group in groups:
            if group.problem:
                self._damaged(component, item, (group.start, group.length), group.problem)
            chosen = [chunk for chunk in group.places if self._draw.random() < self._share]

            def use(fetched: Fetched, places: dict[bytes, list[tuple[int, int]]] = group.places) -> None:
                with self._lock:
                    self._count += 1
                    self._size += len(fetched.data)
                    if fetched.damage is not None:
                        for place in places[fetched.id]:
                            self._damaged(component, item, place, str(fetched.damage))
                    if self._progress is not None:
                        self._progress(len(fetched.data))

            self._trees.chunks.fetch(chosen, use)

    def _damaged(self, component: str, item: str, place: tuple[int, int], problem: str) -> None:
        where = Place(component, item, *place)
        self._damages.append(Damage(self._point.vm, self._point.session, where, problem))


class _Group:
    """The chunks below one leaf, with offset and length of the places where each belongs."""

    def __init__(self, start: int, length: int) -> None:
        self.start, self.length = start, length
        self.problem = ""
        self.places: dict[bytes, list[tuple[int, int]]] = defaultdict(list)


def _order(damage: Damage) -> tuple[str, str, int]:
    return damage.place.component, damage.place.item, damage.place.offset
