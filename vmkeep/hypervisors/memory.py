"""A hypervisor in memory: the reference of the Protocol, and what fast tests of whole runs use."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vmkeep.errors import InputError, SourceChangedError, SourceError, UnsupportedError
from vmkeep.hypervisors import definition as definitions
from vmkeep.hypervisors import host, reconcile
from vmkeep.hypervisors.base import AS_IT_WAS, Change, DiskState, Found, MachineState, Snapshot
from vmkeep.hypervisors.definition import Definition, DiskFile
from vmkeep.hypervisors.drilled import require_copy, require_isolated, require_mark
from vmkeep.hypervisors.memory_disk import MemoryDisk
from vmkeep.hypervisors.still import find_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from vmkeep.disks.device import DiskSource, DiskTarget, Extent, Image
    from vmkeep.fleet.model import VM
    from vmkeep.guests.base import AgentChannel
    from vmkeep.hypervisors.base import Capacity, Elsewhere, Orphan

_snapshots = itertools.count()


@dataclass(slots=True)
class _Machine:
    definition: Definition
    disks: dict[str, MemoryDisk] = field(default_factory=dict)
    restoring: dict[str, tuple[MemoryDisk, str]] = field(default_factory=dict)
    """New disks with their format, not in place yet."""
    running: bool = False
    drill: str | None = None


class _Reader(MemoryDisk):
    """A disk of a snapshot, which must not be written until it is closed."""

    def __init__(self, disk: MemoryDisk, expected: str, what: str) -> None:
        super().__init__(disk.size)
        self._blocks, self._lock = disk._blocks, disk._lock  # noqa: SLF001  (the same module)
        self._disk, self._expected, self._what = disk, expected, what
        self._require_unchanged()

    def close(self) -> None:
        """Tell whether the disk stayed the same."""
        self._require_unchanged()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()

    def _require_unchanged(self) -> None:
        if self._disk.mark != self._expected:
            raise SourceChangedError(f"{self._what} changed since its snapshot: back it up again")


class MemoryHypervisor:
    """VMs that live as long as the process, and can be started and stopped."""

    driver: Final = "memory"
    can_start: Final = True
    streams: Final = None
    kernel_mounts: Final = False

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.agents: dict[str, Callable[[], AgentChannel]] = {}
        """What `agent` returns, by VM."""
        self.isolated: set[str] = set()
        """The networks of drills."""
        self._machines: dict[str, _Machine] = {}
        self._held: dict[str, dict[tuple[str, str], MemoryDisk]] = {}
        """The disks of running VMs as they were, by snapshot and then VM and disk."""

    def disk(self, name: str, disk: str) -> MemoryDisk:
        """Return a disk, for tests to write into as the guest would."""
        return self._machine(name).disks[disk]

    def unsupported(self, name: str, vm: VM) -> Sequence[str]:  # noqa: ARG002  (the Protocol's)
        """Return nothing: what it cannot do it ignores, as a reference may."""
        return []

    def inventory(self) -> Sequence[Found]:
        """Return the VMs that were made."""
        return [Found(one.definition, running=one.running) for _, one in sorted(self._machines.items())]

    def capacity(self) -> Capacity:
        """Return this host's."""
        return host.capacity({})

    def exists(self, name: str) -> bool:
        """Tell whether the VM was made."""
        return name in self._machines

    def configure(self, name: str, vm: VM, *, apply: bool) -> Sequence[Change]:
        """Return the differences between declared and actual; carry them out if *apply*."""
        machine = self._machines.get(name)
        actual = machine.definition if machine else None
        wanted = definitions.declared(name, vm, actual=actual, disks=reconcile.wanted_disks(vm, actual))
        changes = reconcile.differences(name, vm, actual, wanted, adopted=False)
        if not apply:
            return changes
        if machine is None:
            machine = self._machines[name] = _Machine(wanted)
        self._require_off(name, machine)
        machine.definition = wanted
        for disk in wanted.disks:
            machine.disks.setdefault(disk.name, MemoryDisk(disk.size)).size = disk.size
        return [Change(change.what, change.actual, change.declared, applied=True) for change in changes]

    def prepare(
        self,
        group: str,
        vms: Mapping[str, VM],
        *,
        owner: str = "",  # noqa: ARG002  (the Protocol's: what is left behind dies with the process)
        marks: Mapping[str, Mapping[str, Sequence[str]]] | None = None,  # noqa: ARG002  (all are known)
    ) -> Snapshot:
        """Look what the VMs are."""
        held = f"memory:{next(_snapshots)}"
        machines = {}
        for name, vm in vms.items():
            machine = self._machine(name)
            missing = [disk.name for disk in vm.disks if disk.name not in machine.disks]
            if missing:
                raise SourceError(f"VM {name}: no disk {', '.join(missing)}")
            states = tuple(_state(machine, disk.name, machine.disks[disk.name]) for disk in vm.disks)
            socket = held if machine.running else ""
            machines[name] = MachineState(
                name, machine.definition.to_json(), states, machine.running, socket=socket
            )
        return Snapshot(group, "", "powered-off", machines)

    def take(self, prepared: Snapshot) -> Snapshot:
        """Record the state of the disks of powered-off VMs, and copy those of running ones."""
        taken = datetime.now(UTC).isoformat(timespec="milliseconds")
        machines = {}
        for name, state in prepared.machines.items():
            machine = self._machine(name)
            if machine.running != state.running:
                raise SourceChangedError(f"VM {name} was started or stopped while it was prepared")
            machines[name] = self._taken(machine, state)
        live = any(state.running for state in machines.values())
        return replace(
            prepared, taken=taken, machines=machines, consistency="crash" if live else "powered-off"
        )

    def snapshot(self, group: str, vms: Mapping[str, VM]) -> Snapshot:
        """Prepare and take a snapshot at once."""
        return self.take(self.prepare(group, vms))

    def open_disk(self, machine: MachineState, disk: str) -> DiskSource:
        """Open a disk as it was at the snapshot."""
        state = find_disk(machine, disk)
        what = f"VM {machine.vm}: disk {disk}"
        if machine.socket:
            held = self._held.get(machine.socket)
            if held is None:
                raise SourceChangedError(f"{what}: its snapshot was dropped: back it up again")
            return held[machine.vm, disk]
        return _Reader(self._machine(machine.vm).disks[disk], state.fingerprint, what)

    def changed(self, machine: MachineState, disk: str, since: str) -> Sequence[Extent] | None:
        """Return what was touched since; it is known for as long as the disk exists."""
        held = self._held.get(machine.socket, {})
        return (held.get((machine.vm, disk)) or self._machine(machine.vm).disks[disk]).changed(since)

    def release(self, snapshot: Snapshot) -> None:
        """Drop the copies."""
        for machine in snapshot.machines.values():
            self._held.pop(machine.socket, None)

    def require_place(self, elsewhere: Elsewhere) -> None:
        """Refuse a storage, for there is one place only; a network is but a name here."""
        if elsewhere.storage is not None:
            raise UnsupportedError(
                f"a storage is not supported by driver memory (hypervisor {self.name}): leave it out"
            )

    def create(
        self,
        name: str,
        definition: str,
        *,
        overwrite: bool,
        drill: str | None = None,
        elsewhere: Elsewhere = AS_IT_WAS,
    ) -> Sequence[Change]:
        """Make the VM from a captured definition; disks that are there stay as they are."""
        captured = definitions.parse(definition, where=f"the captured definition of VM {name}")
        before = self._machines.get(name)
        if drill is not None:
            require_copy(name, captured.name)
            require_isolated(drill, self.isolated)
            if before is not None:
                require_mark(name, before.drill, drill)
            captured = captured.attached(drill)
        if before is not None:
            if not overwrite:
                raise InputError(f"VM {name} exists already: say overwrite, or restore under another name")
            self._require_off(name, before)
        changes: Sequence[Change] = ()
        if captured.name != name:
            captured, changes = reconcile.renamed(captured, name)
        captured, moved = reconcile.connected(captured, elsewhere.networks)
        for disk in before.definition.disks if before else ():
            captured = captured.with_disk(disk)
        self._machines[name] = _Machine(captured, before.disks if before else {}, drill=drill)
        return [*changes, *moved]

    def create_disk(self, name: str, disk: str, *, size: int, format: str) -> DiskTarget:  # noqa: A002
        """Open a new disk, which replaces one of that name in `commit_disks`."""
        new = MemoryDisk(size)
        self._machine(name).restoring[disk] = (new, format)
        return new

    def commit_disks(self, name: str, disks: Sequence[str]) -> None:
        """Put new disks in place, all or none."""
        machine = self._machine(name)
        self._require_off(name, machine)
        lacking = [disk for disk in disks if disk not in machine.restoring]
        if lacking:
            raise SourceError(
                f"VM {name}: disk {', '.join(lacking)} was not restored: nothing to put in place"
            )
        for disk in disks:
            new, image_format = machine.restoring.pop(disk)
            machine.disks[disk] = new
            entry = {"name": disk, "file": f"{disk}.{image_format}", "format": image_format, "size": new.size}
            machine.definition = machine.definition.with_disk(DiskFile.model_validate(entry))

    def discard_disks(self, name: str, disks: Sequence[str]) -> None:
        """Forget new disks that were not put in place."""
        for disk in disks:
            self._machine(name).restoring.pop(disk, None)

    def isolate(self, drill: str) -> None:
        """Note that there is such a network."""
        self.isolated.add(drill)

    def remove(self, name: str, *, drill: str) -> None:
        """Forget a VM of a drill."""
        machine = self._machines.get(name)
        if machine is not None:
            require_mark(name, machine.drill, drill)
            del self._machines[name]

    def orphans(self) -> Sequence[Orphan]:
        """Return nothing: all of it goes with this process."""
        return ()

    def end_isolation(self, drill: str) -> None:
        """Note that there is no such network any more."""
        self.isolated.discard(drill)

    def images(self, name: str) -> Sequence[Image]:  # noqa: ARG002  (the Protocol's)
        """Return nothing: disks in memory are no files."""
        return []

    def is_running(self, name: str) -> bool:
        """Tell whether the VM is powered on."""
        return self._machine(name).running

    def start(self, name: str) -> None:
        """Power the VM on."""
        self._machine(name).running = True

    def stop(self, name: str) -> None:
        """Power the VM off."""
        self._machine(name).running = False

    def agent(self, name: str) -> AgentChannel:
        """Return what was put into `agents`."""
        if not self._machine(name).running or name not in self.agents:
            raise SourceError(f"VM {name} has no guest agent")
        return self.agents[name]()

    def _machine(self, name: str) -> _Machine:
        if name not in self._machines:
            raise SourceError(f"VM {name} does not exist; `vmkeep configure` creates it")
        return self._machines[name]

    def _require_off(self, name: str, machine: _Machine) -> None:
        if machine.running:
            raise SourceChangedError(f"VM {name} is running: power it off first")

    def _taken(self, machine: _Machine, state: MachineState) -> MachineState:
        begun = time.monotonic()
        if state.running:
            copies = {(state.vm, name): disk.copy() for name, disk in machine.disks.items()}
            self._held.setdefault(state.socket, {}).update(copies)
        states = tuple(_state(machine, one.name, machine.disks[one.name]) for one in state.disks)
        ended = time.monotonic()
        return replace(
            state, disks=states, begun=begun if state.running else 0, ended=ended if state.running else 0
        )


def _state(machine: _Machine, disk: str, actual: MemoryDisk) -> DiskState:
    known = machine.definition.disk(disk)
    image_format = known.format if known else "raw"
    return DiskState(disk, "", image_format, actual.size, actual.allocated, actual.mark, mark=actual.mark)
