"""What every kind of component can do: be saved from a VM, and be restored into one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from vmkeep.components.guest import GuestFiles
    from vmkeep.disks.device import DiskSource, DiskTarget, Extent
    from vmkeep.fleet.model import VM
    from vmkeep.hypervisors.base import Hypervisor, MachineState
    from vmkeep.repository.manifest import DiskRef, SavedComponent, Stats, StreamRef


class StreamWriter(Protocol):
    """Where streams are saved to."""

    def save_stream(
        self,
        blocks: Iterable[bytes | bytearray | memoryview],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[StreamRef, Stats]:
        """Save a stream of bytes; each block is used up before the next is asked for."""


class ChunkWriter(StreamWriter, Protocol):
    """Where components are saved to: a session of the repository."""

    def save_disk(
        self,
        source: DiskSource,
        *,
        parent: DiskRef | None = None,
        changed: Iterable[Extent] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[DiskRef, Stats]:
        """Save a disk; what is as in *parent* is not stored again.

        Args:
            changed: All ranges that may differ from *parent*; only these are read. None: not known.
            progress: Told how many bytes were read since the last call.
        """

    def deviation(self, source: DiskSource, parent: DiskRef, changed: Iterable[Extent]) -> int | None:
        """Return where a disk differs from *parent* though it is not in *changed*; `None`: no sample did."""


class StreamReader(Protocol):
    """Where streams are read from."""

    def read_stream(self, ref: StreamRef, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a stream, in blocks of any size, from *start*."""


class ChunkReader(StreamReader, Protocol):
    """Where components are restored from: the repository, every byte checked."""

    def restore_disk(
        self,
        ref: DiskRef,
        target: DiskTarget,
        *,
        present: DiskSource | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Write a whole disk; return how many bytes of it *present* held, so that they were not fetched."""


def _ignore(_size: int) -> None:
    """Take no notice of progress."""


@dataclass(frozen=True, slots=True)
class SaveContext:
    """All that saving one component of one VM needs."""

    name: str
    """The VM."""
    vm: VM
    component: str
    """`os`, or `kind.name` such as `databases.orders`."""
    hypervisor: Hypervisor
    machine: MachineState
    """The VM at its snapshot."""
    writer: ChunkWriter
    files: GuestFiles
    """The VM's file systems, opened when first used; components of a VM may share them."""
    scratch: Path
    """A private folder for large temporary files."""
    parents: Sequence[SavedComponent] = ()
    """The same component in earlier recovery points, newest first."""
    progress: Callable[[int], None] = field(default=_ignore)


@dataclass(frozen=True, slots=True)
class RestoreContext:
    """All that restoring one component needs."""

    name: str
    """The VM to restore into; it may be another than the one that was saved."""
    component: str
    hypervisor: Hypervisor
    reader: ChunkReader
    scratch: Path
    folder: Path | None = None
    """Restore files into this folder instead of the VM."""
    paths: tuple[str, ...] = ()
    """Only these files and folders (absolute paths in the guest) and what is below them; all by default."""
    exact: bool | None = None
    """Also remove what the recovery point does not have; by default for databases only."""
    owners: bool = True
    """False restores files as ours: no owners, devices or privileged attributes, so needs no root."""
    progress: Callable[[int], None] = field(default=_ignore)
    reused: Callable[[int], None] = field(default=_ignore)
    """Told how many bytes were not fetched, because the disk to be replaced holds them."""


class Component(Protocol):
    """One kind of component of one VM, as declared."""

    def save(self, context: SaveContext) -> SavedComponent:
        """Save the component from the VM's snapshot.

        Raises:
            SourceError: it is not there, or not in a state to be saved.
            SourceChangedError: it changed while it was read; nothing that was saved may be used.
        """

    def restore(self, context: RestoreContext, saved: SavedComponent) -> None:
        """Write the component: all of it, or the VM's images stay as they were.

        Raises:
            SourceError: the VM is not in a state to be written.
            IntegrityError: stored data is damaged.
        """
