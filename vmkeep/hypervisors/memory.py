"""A hypervisor in memory: the reference of the Protocol, and what fast tests of whole runs use."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vmkeep.disks.device import Extent, Image
from vmkeep.errors import InputError, SourceChangedError, SourceError
from vmkeep.hypervisors import definition as definitions
from vmkeep.hypervisors import reconcile
from vmkeep.hypervisors.base import Change, DiskState, MachineState, Snapshot
from vmkeep.hypervisors.definition import Definition, DiskFile
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from vmkeep.disks.device import DiskSource, DiskTarget
    from vmkeep.fleet.model import VM
    from vmkeep.guests.base import AgentChannel

_BLOCK: Final = 64 * KiB
_versions = itertools.count()


class MemoryDisk:
    """A sparse disk: the blocks that were written. Safe to use from several threads."""

    def __init__(self, size: int) -> None:
        """Make a disk of *size* bytes that reads as zeros."""
        self.size = size
        self.version = next(_versions)
        """Changes with each write; no two disks ever share one."""
        self._blocks: dict[int, bytearray] = {}
        self._lock = threading.Lock()

    @property
    def fresh(self) -> bool:
        """Whether nothing was written yet."""
        return not self._blocks

    @property
    def allocated(self) -> int:
        """Bytes that hold data."""
        return len(self._blocks) * _BLOCK

    def extents(self) -> Iterator[Extent]:
        """Yield the ranges that were written, merged."""
        with self._lock:
            blocks = sorted(self._blocks)
        start = end = -1
        for block in blocks:
            if block != end:
                if end > start:
                    yield self._extent(start, end)
                start = block
            end = block + 1
        if end > start:
            yield self._extent(start, end)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*; all of it, or raise."""
        self._check(offset, len(buffer))
        with self._lock:
            for block, start, length, at in _cut(offset, len(buffer)):
                data = self._blocks.get(block)
                buffer[at : at + length] = data[start : start + length] if data else bytes(length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of *data* at *offset*."""
        view = memoryview(data)
        self._check(offset, len(view))
        with self._lock:
            self.version = next(_versions)
            for block, start, length, at in _cut(offset, len(view)):
                place = self._blocks.setdefault(block, bytearray(_BLOCK))
                place[start : start + length] = view[at : at + length]

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros; whole blocks are forgotten."""
        self._check(offset, length)
        with self._lock:
            self.version = next(_versions)
            for block, start, count, _ in _cut(offset, length):
                if count == _BLOCK:
                    self._blocks.pop(block, None)
                elif block in self._blocks:
                    self._blocks[block][start : start + count] = bytes(count)

    def flush(self) -> None:
        """Do nothing: memory has no stable storage."""

    def close(self) -> None:
        """Do nothing: others may use it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _extent(self, start: int, end: int) -> Extent:
        return Extent(start * _BLOCK, min(end * _BLOCK, self.size) - start * _BLOCK)

    def _check(self, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= self.size:
            raise SourceError(f"bytes {offset} to {offset + length} are outside of the disk's {self.size}")


@dataclass(slots=True)
class _Machine:
    definition: Definition
    disks: dict[str, MemoryDisk] = field(default_factory=dict)
    restoring: dict[str, tuple[MemoryDisk, str]] = field(default_factory=dict)
    """New disks with their format, not in place yet."""
    running: bool = False


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
        if _fingerprint(self._disk) != self._expected:
            raise SourceChangedError(f"{self._what} changed since its snapshot: back it up again")


class MemoryHypervisor:
    """VMs that live as long as the process, and can be started and stopped."""

    driver: Final = "memory"
    can_start: Final = True
    kernel_mounts: Final = False

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self._machines: dict[str, _Machine] = {}

    def disk(self, name: str, disk: str) -> MemoryDisk:
        """Return a disk, for tests to write into as the guest would."""
        return self._machine(name).disks[disk]

    def unsupported(self, name: str, vm: VM) -> Sequence[str]:  # noqa: ARG002  (the Protocol's)
        """Return nothing: what it cannot do it ignores, as a reference may."""
        return []

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

    def snapshot(self, group: str, vms: Mapping[str, VM]) -> Snapshot:
        """Record the state of all disks."""
        machines = {}
        for name, vm in vms.items():
            machine = self._machine(name)
            self._require_off(name, machine)
            missing = [disk.name for disk in vm.disks if disk.name not in machine.disks]
            if missing:
                raise SourceError(f"VM {name}: no disk {', '.join(missing)}")
            states = tuple(self._state(machine, disk.name) for disk in vm.disks)
            machines[name] = MachineState(name, machine.definition.to_json(), states)
        taken = datetime.now(UTC).isoformat(timespec="milliseconds")
        return Snapshot(group, taken, "powered-off", machines)

    def open_disk(self, machine: MachineState, disk: str) -> DiskSource:
        """Open a disk as it was at the snapshot."""
        state = next((state for state in machine.disks if state.name == disk), None)
        if state is None:
            raise InputError(f"VM {machine.vm}: disk {disk} is not in the snapshot")
        actual = self._machine(machine.vm).disks[disk]
        return _Reader(actual, state.fingerprint, f"VM {machine.vm}: disk {disk}")

    def release(self, snapshot: Snapshot) -> None:
        """Do nothing: a snapshot is only a record."""

    def create(self, name: str, definition: str, *, overwrite: bool) -> None:
        """Make the VM from a captured definition; disks that are there stay as they are."""
        captured = definitions.parse(definition, where=f"the captured definition of VM {name}")
        before = self._machines.get(name)
        if before is not None:
            if not overwrite:
                raise InputError(f"VM {name} exists already: say overwrite, or restore under another name")
            self._require_off(name, before)
        if captured.name != name:
            captured = captured.renamed(name)
        for disk in before.definition.disks if before else ():
            captured = captured.with_disk(disk)
        self._machines[name] = _Machine(captured, before.disks if before else {})

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

    def images(self, name: str) -> Sequence[Image]:  # noqa: ARG002  (the Protocol's)
        """Return nothing: disks in memory are no files."""
        return []

    def start(self, name: str) -> None:
        """Power the VM on."""
        self._machine(name).running = True

    def stop(self, name: str) -> None:
        """Power the VM off."""
        self._machine(name).running = False

    def agent(self, name: str) -> AgentChannel:
        """Raise: no guest lives in a machine of memory."""
        raise SourceError(f"VM {name} has no guest agent")

    def _machine(self, name: str) -> _Machine:
        if name not in self._machines:
            raise SourceError(f"VM {name} does not exist; `vmkeep configure` creates it")
        return self._machines[name]

    def _require_off(self, name: str, machine: _Machine) -> None:
        if machine.running:
            raise SourceChangedError(f"VM {name} is running: power it off first")

    def _state(self, machine: _Machine, disk: str) -> DiskState:
        actual, known = machine.disks[disk], machine.definition.disk(disk)
        image_format = known.format if known else "raw"
        return DiskState(disk, "", image_format, actual.size, actual.allocated, _fingerprint(actual))


def _fingerprint(disk: MemoryDisk) -> str:
    return f"{disk.version}:{disk.size}"


def _cut(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield block, start in it, length in it, and position in the whole, for each block touched."""
    done = 0
    while done < length:
        block, start = divmod(offset + done, _BLOCK)
        count = min(_BLOCK - start, length - done)
        yield block, start, count, done
        done += count
