"""What runs VMs: the one Protocol behind which every hypervisor is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmkeep.disks.device import DiskSource, DiskTarget, Extent, Image
    from vmkeep.fleet.model import VM
    from vmkeep.guests.base import AgentChannel
    from vmkeep.hypervisors.definition import Definition


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between what is declared and what is."""

    what: str
    """The key, such as `memory` or `disks.data.size`."""
    actual: str | None
    """`None`: it does not exist and is created."""
    declared: str
    applied: bool = False
    pending: bool = False
    """Whether a VM that runs takes it up only when it is started the next time."""


@dataclass(frozen=True, slots=True)
class DiskState:
    """The identity of a disk's content at a snapshot: strings and numbers, kept as JSON."""

    name: str
    path: str
    format: str
    size: int
    """Virtual size in bytes."""
    allocated: int
    """Bytes that hold data, as far as is known cheaply."""
    fingerprint: str = ""
    """Changes when the content may have changed; empty where the snapshot itself holds the content."""
    export: str = ""
    """Its name at the NBD server of its machine; empty: the image is read itself."""
    mark: str = ""
    """What a later backup asks by for the changes since this snapshot; empty: they cannot be told."""
    since: str = ""
    """The mark of the earlier snapshot since which the changes are known; empty: all is to be read."""
    remark: str = ""
    """Why the changes are not known though an earlier backup left a mark; empty: nothing is wrong."""


@dataclass(frozen=True, slots=True)
class MachineState:
    """One VM at the moment of a snapshot."""

    vm: str
    definition: str
    """The hypervisor's own description of the VM (JSON for `images` and `vsphere`, XML for libvirt)."""
    disks: tuple[DiskState, ...]
    running: bool = False
    socket: str = ""
    """The unix socket of the NBD server that shows its disks as they were; empty: they lie still."""
    begun: float = 0.0
    """When taking its snapshot began: seconds, by the clock of this host; 0 for a VM that is powered off."""
    ended: float = 0.0
    """When it was over."""
    remark: str = ""
    """What of the VM, beside its disks, could not be captured; empty: nothing is missing."""
    snapshot: str = ""
    """The name of the snapshot that the hypervisor holds of it; empty: there is none."""
    stilled: bool = False
    """Whether the hypervisor let the file systems of its guest stand still meanwhile, by itself."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The VMs of a consistency group at one moment; a value that survives the process."""

    group: str
    taken: str
    """UTC, ISO 8601; empty while it is only prepared."""
    consistency: str
    """`powered-off`, `application`, `filesystem` or `crash`."""
    machines: Mapping[str, MachineState] = field(default_factory=dict)
    frozen: float = 0.0
    """Seconds that the guest that stood still longest did."""
    remarks: tuple[str, ...] = ()
    """What people should know: why it is not as consistent as it could be."""

    @property
    def skew(self) -> float:
        """Seconds between the first moment and the last at which a running VM was captured."""
        live = [machine for machine in self.machines.values() if machine.ended]
        return max((one.ended for one in live), default=0) - min((one.begun for one in live), default=0)


@dataclass(frozen=True, slots=True)
class ServedDisk:
    """A disk that an NBD server shows: what a VM reads until it has all of it."""

    size: int
    """Bytes."""
    socket: Path
    """The server's unix socket, in `Streams.folder`."""
    export: str
    """Its name at the server."""


@dataclass(frozen=True, slots=True)
class Behind:
    """A disk of which not all has streamed in yet."""

    disk: str
    socket: Path
    """Of the server that has the rest."""
    done: int = 0
    """Bytes that were dealt with; what begins again deals with all of them again, and copies the rest."""
    size: int = 0
    """Bytes that it deals with in all; 0: nothing streams now."""
    export: str = ""
    """What the disk that it lies over is called at the server."""


class Streams(Protocol):
    """Lets VMs run on overlays over disks that an NBD server shows, while their data streams in.

        guest ── overlay in the VM's storage ── NBD server ── recovery point
                 what it wrote, what came in     the rest

    Every call may be repeated.
    """

    def folder(self, name: str) -> Path:
        """Return where the socket of the NBD server of a VM is to lie; make it if it is not there.

        Whoever can enter it may connect: only who runs VMs can.
        """

    def overlay(self, name: str, disks: Mapping[str, ServedDisk]) -> None:
        """Put overlays over served disks in place as the VM's disks, all or none.

        What they replace is kept until all data has streamed in. The VM can be started for as long as the
        server is there, and needs it until `stream` returns nothing.

        Raises:
            SourceError: the VM runs, or overlays cannot be made.
        """

    def behind(self, name: str) -> Sequence[Behind]:
        """Return the disks of which not all has streamed in; none for a VM that is not there."""

    def stream(self, name: str, *, bandwidth: int = 0) -> Sequence[Behind]:
        """Let the data stream in behind the VM that runs; returns at once, and is called until it is done.

        It begins what does not stream yet, also again after a failure. When all is in, it removes what
        `overlay` replaced.

        Args:
            bandwidth: Of each disk, in bytes a second; 0 for as fast as it goes. Counts when one begins.

        Returns:
            As `behind`; the VM needs no server any more when it is empty.

        Raises:
            SourceError: the VM is powered off.
        """

    def recover(self, name: str) -> str:
        """Let a VM go on that stood still, or died, because its server was away; it is back now.

        Returns:
            What was done, for people; empty: nothing had to be.
        """


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What of a VM that is restored is to be elsewhere than it was."""

    networks: Mapping[str, str] = field(default_factory=dict)
    """The network that a card is to be on, by the one that it was on."""
    storage: str | None = None
    """Where the disks of a VM that does not exist yet are made; by default where they were."""


AS_IT_WAS: Final = Elsewhere()


@dataclass(frozen=True, slots=True)
class Orphan:
    """What is there for the time of a run, and whose process does not run on this host, or is not seen."""

    vm: str = ""
    """Empty: it is the isolated network of a drill."""
    drill: str = ""
    """The drill that the VM or network was made for; empty: it is new disks of a VM, never put in place."""
    disks: tuple[str, ...] = ()
    """Of what disks they are."""
    gone: bool = False
    """Whether its process is gone for certain: of another host, or another container, nobody can tell."""
    maker: str = ""
    """The process, for people."""


@dataclass(frozen=True, slots=True)
class Found:
    """A VM that a hypervisor has, whoever made it."""

    definition: Definition
    """What it is, in the words of the fleet file."""
    running: bool = False
    agent: bool = False
    """Whether it has a channel for a guest agent."""
    storages: Mapping[str, str] = field(default_factory=dict)
    """Where its disks lie, by their names; one that lies in no storage of the hypervisor is left out."""
    remark: str = ""
    """Why it is not described in full, and cannot be taken into a fleet; empty: it is."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where disks are made."""

    name: str
    size: int
    """Bytes."""
    free: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much room a hypervisor has."""

    cpus: int
    """Processors of the host."""
    memory: int
    """Bytes of the host."""
    free: int
    """Bytes of memory that VMs could have now."""
    storages: tuple[Storage, ...] = ()


class Hypervisor(Protocol):
    """Creates, captures and writes VMs. Every call may be repeated.

    None deletes a disk but `remove`, which takes only a VM that was created for a drill.
    """

    @property
    def driver(self) -> str:
        """The name of the driver, as in the fleet file."""

    @property
    def can_start(self) -> bool:
        """Whether VMs can be powered on through it."""

    @property
    def kernel_mounts(self) -> bool:
        """Whether this host's kernel may mount the guests' file systems, which are untrusted input."""

    @property
    def streams(self) -> Streams | None:
        """How VMs run on disks whose data streams in behind them; `None`: here they cannot."""

    def unsupported(self, name: str, vm: VM) -> Sequence[str]:
        """Return one sentence for each declared thing that this driver cannot do."""

    def inventory(self) -> Sequence[Found]:
        """Return all VMs that there are, by name, whoever made them."""

    def capacity(self) -> Capacity:
        """Return how much room there is now."""

    def exists(self, name: str) -> bool:
        """Tell whether the VM exists."""

    def configure(self, name: str, vm: VM, *, apply: bool) -> Sequence[Change]:
        """Return the differences between declared and actual; carry them out if *apply*.

        Creates what is missing, changes only what is declared, grows disks, never shrinks or deletes one.

        Raises:
            InputError: the declared state cannot be reached (a disk would shrink).
            SourceError: the VM runs.
        """

    def prepare(
        self,
        group: str,
        vms: Mapping[str, VM],
        *,
        owner: str = "",
        marks: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    ) -> Snapshot:
        """Do all that can be done before the moment of a snapshot, while the guests still work.

        Nothing needs to be undone before `take`, but what is returned must be written down before it:
        `release` then finds whatever a killed `take` left.

        Args:
            owner: The fleet. What earlier snapshots of the same fleet left behind is cleared away.
            marks: By VM and disk, the marks of recovery points that can be built on, newest first.

        Raises:
            SourceError: a VM, or one of its declared disks, is missing or unreadable.
            SourceChangedError: a VM runs and the driver cannot save running ones.
        """

    def take(self, prepared: Snapshot) -> Snapshot:
        """Capture all VMs of a prepared snapshot, as close to one moment as possible.

        Raises:
            SourceChangedError: a VM was started or stopped since it was prepared.
            SourceError: it cannot be taken; what was begun of it is dropped.
        """

    def snapshot(self, group: str, vms: Mapping[str, VM]) -> Snapshot:
        """Prepare and take a snapshot at once; raises as both do."""

    def changed(self, machine: MachineState, disk: str, since: str) -> Sequence[Extent] | None:
        """Return all ranges of a disk that may differ from what it was when it got the mark *since*.

        Returns:
            In order; `None` when they are not known, and all must be read.
        """

    def open_disk(self, machine: MachineState, disk: str) -> DiskSource:
        """Open a disk as it was at the snapshot.

        Raises:
            SourceChangedError: it is not what it was any more.
        """

    def release(self, snapshot: Snapshot) -> None:
        """Drop the snapshot, also one that was only prepared; a second call does nothing."""

    def require_place(self, elsewhere: Elsewhere) -> None:
        """Check that there is what a restore is told to use.

        Raises:
            InputError: there is no such network or storage; says which there are.
            UnsupportedError: the driver knows no storage.
        """

    def create(
        self,
        name: str,
        definition: str,
        *,
        overwrite: bool,
        drill: str | None = None,
        elsewhere: Elsewhere = AS_IT_WAS,
    ) -> Sequence[Change]:
        """Create the VM from a captured definition, without disks, for a restore.

        Args:
            elsewhere: What is not to be where it was. It is of no meaning in a drill.
            drill: The isolated network of a drill (see `isolate`). The VM is attached to nothing else, and
                to nothing of the host that others use; it carries a mark, from its first moment, that
                lets `remove` take it. It must have another name than it was captured under.

        Returns:
            What of the definition had to be changed to fit here, such as network addresses of a copy.

        Raises:
            InputError: it exists and *overwrite* is false, or it exists and was not made for this drill, or
                it exists and its disks would have to move to another storage.
            SourceError: it runs.
        """

    def create_disk(self, name: str, disk: str, *, size: int, format: str) -> DiskTarget:  # noqa: A002
        """Open a new disk beside an existing one of that name, which it replaces in `commit_disks`."""

    def commit_disks(self, name: str, disks: Sequence[str]) -> None:
        """Put the disks written through `create_disk` in place, all or none.

        Raises:
            SourceError: one was not written through `create_disk`, or the VM runs.
        """

    def discard_disks(self, name: str, disks: Sequence[str]) -> None:
        """Remove what `create_disk` made of these and `commit_disks` did not put in place, if anything."""

    def isolate(self, drill: str) -> None:
        """Make an isolated network for a drill: it leads nowhere, and only the drill's VMs are in it.

        Nothing happens where VMs cannot be started.

        Raises:
            InputError: there is a network of that name that no drill made.
        """

    def remove(self, name: str, *, drill: str) -> None:
        """Remove a VM with its disks, whether it runs or not; nothing happens when it does not exist.

        Only files that the drill made are deleted. Killed at any moment, another call does the rest.

        Raises:
            InputError: it was not created for this drill; nothing was touched.
        """

    def end_isolation(self, drill: str) -> None:
        """Remove the isolated network of a drill; nothing happens when it does not exist.

        Raises:
            InputError: no drill made it.
        """

    def orphans(self) -> Sequence[Orphan]:
        """Return what was made for the time of a run, and whose process is gone or not seen; VMs first.

        `remove`, `end_isolation` and `discard_disks` take it away. What others made is never among it.
        """

    def images(self, name: str) -> Sequence[Image]:
        """Return the files the VM's disks lie in, in order; empty where they are not files we can open."""

    def is_running(self, name: str) -> bool:
        """Tell whether the VM is powered on (or paused)."""

    def start(self, name: str) -> None:
        """Power the VM on.

        Raises:
            UnsupportedError: the driver cannot (see `can_start`).
        """

    def stop(self, name: str) -> None:
        """Power the VM off.

        Raises:
            UnsupportedError: the driver cannot (see `can_start`).
        """

    def agent(self, name: str) -> AgentChannel:
        """Return a way to the guest agent of a VM; whether it answers is seen when it is used.

        Raises:
            UnsupportedError: the driver cannot start VMs.
            SourceError: the VM does not run, or has no channel for an agent.
        """
