"""What a recovery point says, as values; `docs/format.md` gives their bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class DiskRef:
    """A whole disk: fixed-size chunks named by a two-level tree whose leaves are chunks themselves."""

    size: int
    """Virtual size in bytes."""
    chunk_size: int
    """Bytes of every chunk but the last."""
    leaves: tuple[bytes, ...]
    """Ids (32 bytes) of the leaf chunks, in order; all zeros for a leaf of holes only."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf of a stream's tree."""

    id: bytes
    """Id (32 bytes) of the leaf chunk."""
    length: int
    """Bytes of the stream below it."""


@dataclass(frozen=True, slots=True)
class StreamRef:
    """A stream of bytes, cut by content: a database dump, the files of a tree, a catalogue."""

    size: int
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """What saving something cost, in bytes."""

    read: int = 0
    """Read from the source (holes are never read)."""
    new: int = 0
    """Bytes of chunks that the repository did not have yet; a chunk counts whole, with the holes in it."""
    stored: int = 0
    """What the new bytes take in packs, compressed and encrypted."""
    seconds: float = 0.0

    def __add__(self, other: Stats) -> Stats:
        return Stats(
            self.read + other.read,
            self.new + other.new,
            self.stored + other.stored,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True)
class SavedComponent:
    """One component in a recovery point."""

    name: str
    """`os`, or `kind.name` such as `databases.orders`."""
    disks: Mapping[str, DiskRef] = field(default_factory=dict)
    streams: Mapping[str, StreamRef] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    """What restoring it needs to know, and what a person wants to see (engine, version, paths)."""
    stats: Stats = Stats()


@dataclass(frozen=True, slots=True)
class Point:
    """A recovery point: one VM's components at one time. Sealed, immutable, always a full one."""

    vm: str
    session: str
    run: str
    fleet: str
    taken: str
    """When the snapshot was taken: UTC, ISO 8601."""
    sealed: str
    group: str
    consistency: str
    definition: str
    """The hypervisor's own description of the VM."""
    components: Mapping[str, SavedComponent]
    missing: Mapping[str, str] = field(default_factory=dict)
    """Declared components that are not in it, with the reason; empty for a complete point."""
    frozen: float = 0.0
    """Seconds that the guests of its group stood still for the snapshot."""
    skew: float = 0.0
    """Seconds between the first and the last moment at which running VMs of its group were captured."""
    remarks: tuple[str, ...] = ()
    """Why it is not as consistent as it could be."""
    parent: str | None = None
    """The session whose manifests this one inherited from; needed for nothing but statistics."""
    instructions: str = ""
    """How to restore it by hand, in plain words."""
    fleet_file: str = ""
    """The text of the fleet file that made it."""
    copy_of: str = ""
    """The session that first saved this, in another repository; empty for an original."""

    @property
    def complete(self) -> bool:
        """Whether every declared component is in it."""
        return not self.missing

    @property
    def stats(self) -> Stats:
        """The sum over its components."""
        return sum((component.stats for component in self.components.values()), Stats())
