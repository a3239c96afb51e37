"""Small repositories for tests: everything is cut so fine that a few KiB make trees and many packs."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from vmkeep.disks.device import Extent
from vmkeep.repository.format import Format
from vmkeep.repository.manifest import Point, SavedComponent
from vmkeep.repository.repository import Repository
from vmkeep.repository.secret import Secret
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from vmkeep.repository.manifest import DiskRef
    from vmkeep.repository.session import Session
    from vmkeep.stores.base import Store

KEY: Final = Secret.key(bytes(range(32)))
CHUNK: Final = 4 * KiB
LEAF: Final = 8


def small_format() -> Format:
    """Return a format with chunks of 4 KiB, eight below a leaf, and packs of 64 KiB."""
    return Format(
        secrets.token_bytes(16),
        disk_chunk=CHUNK,
        disk_leaf=LEAF,
        stream_least=256,
        stream_average=1024,
        stream_most=4 * KiB,
        pack_most=64 * KiB,
    )


def small_repository(store: Store, secret: Secret = KEY) -> Repository:
    """Make a repository whose chunks are small."""
    return Repository.init(store, secret, parameters=small_format())


class BytesDisk:
    """A disk over bytes, as source and target; counts what is read.

    Args:
        content: what it holds; blocks of `CHUNK` zeros are holes.
        fresh: as a target: whether it says that it reads as zeros.
    """

    def __init__(self, content: bytes | int, *, fresh: bool = True) -> None:
        self.content = bytearray(content)
        self.fresh = fresh
        self.read = 0
        self.written = 0

    @property
    def size(self) -> int:
        return len(self.content)

    def extents(self) -> Iterator[Extent]:
        start = None
        for at in range(0, self.size, CHUNK):
            if any(self.content[at : at + CHUNK]):
                start = at if start is None else start
            elif start is not None:
                yield Extent(start, at - start)
                start = None
        if start is not None:
            yield Extent(start, self.size - start)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.read += len(buffer)
        buffer[:] = self.content[offset : offset + len(buffer)]

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.written += len(data)
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def point(components: Mapping[str, SavedComponent], vm: str = "db1") -> Point:
    """Return a recovery point that is not sealed yet."""
    return Point(
        vm=vm,
        session="",
        run="",
        fleet="shop",
        taken="2026-01-02T03:04:05+00:00",
        sealed="",
        group=vm,
        consistency="powered-off",
        definition="{}",
        components=components,
    )


def save(session: Session, disks: Mapping[str, bytes], streams: Mapping[str, bytes] | None = None) -> None:
    """Save and record one component a disk (`filesystems.NAME`), and one a stream (`databases.NAME`)."""
    for name, content in disks.items():
        ref, stats = session.save_disk(BytesDisk(content))
        session.record(SavedComponent(f"filesystems.{name}", {name: ref}, stats=stats))
    for name, content in (streams or {}).items():
        stream, stats = session.save_stream([content])
        session.record(SavedComponent(f"databases.{name}", streams={name: stream}, stats=stats))


def backup(  # noqa: PLR0913  (tests read best when they say only what matters to them)
    repository: Repository,
    spool: Path,
    disks: Mapping[str, bytes],
    streams: Mapping[str, bytes] | None = None,
    *,
    vm: str = "db1",
    run: str = "run-1",
) -> Point:
    """Save everything and seal the point."""
    with repository.begin(vm=vm, run=run, spool=spool) as session:
        save(session, disks, streams)
        session.upload()
        return session.seal(point(session.recorded(), vm))


def restored(repository: Repository, ref: DiskRef) -> bytes:
    """Return the content of a saved disk."""
    target = BytesDisk(ref.size)
    repository.restore_disk(ref, target)
    return bytes(target.content)


def contents(repository: Repository, saved: Point) -> dict[str, bytes]:
    """Return the content of every disk and stream of a point by name."""
    found = {}
    for component in saved.components.values():
        for name, disk in component.disks.items():
            found[name] = restored(repository, disk)
        for name, stream in component.streams.items():
            found[name] = b"".join(repository.read_stream(stream))
    return found
