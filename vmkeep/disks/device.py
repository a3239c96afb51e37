"""A disk as bytes at offsets: what every source and target of disk data can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """A range of a disk, in bytes."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The offset just behind the range."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Image:
    """The file that a VM's disk lies in, or the NBD server that shows it."""

    disk: str
    """The disk's name."""
    path: Path
    """The file, or the server's unix socket."""
    format: str
    """`raw`, `qcow2`, `vmdk` or `vhdx`."""
    export: str = ""
    """What the NBD server calls the disk; empty for a file."""


class DiskSource(Protocol):
    """A disk that can be read. Safe to use from several threads."""

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""

    def extents(self) -> Iterator[Extent]:
        """Yield the ranges that may hold data, in order, merged, inside the disk.

        What lies outside reads as zeros and need not be read.
        """

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*; all of it, or raise.

        Raises:
            SourceError: the range is not readable.
        """

    def close(self) -> None:
        """Let go of the disk; a second call does nothing.

        Raises:
            SourceChangedError: the disk changed while it was open.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class DiskTarget(Protocol):
    """A disk that can be written. Safe to use from several threads on ranges that do not overlap."""

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""

    @property
    def fresh(self) -> bool:
        """Whether it is known to read as zeros everywhere, so that holes need no writing."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of *data* at *offset*."""

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, without allocating it where the format can."""

    def flush(self) -> None:
        """Return when everything written is on stable storage."""

    def close(self) -> None:
        """Let go of the disk; a second call does nothing."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
