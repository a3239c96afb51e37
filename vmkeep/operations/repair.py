"""Finds what is damaged in a repository, and stores it again from the fleet's copies, or its disks."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.errors import AccessError, NotFoundError, SourceError, UnsupportedError, VmkeepError
from vmkeep.fleet import PRIMARY
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations import repositories
from vmkeep.repository.reindex import reindex
from vmkeep.repository.repair import repair
from vmkeep.repository.repair_live import repair_from_disks

if TYPE_CHECKING:
    from vmkeep.disks.device import DiskSource
    from vmkeep.fleet import FleetFile
    from vmkeep.hypervisors.base import Hypervisor, Snapshot
    from vmkeep.repository import Damage, Repository, ScrubReport


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a repository."""

    found: ScrubReport
    """Before."""
    repaired: tuple[str, ...]
    """`vm/component of session`, with where it came from."""
    stored: int
    """Bytes that were stored again."""
    left: tuple[str, ...]
    """What is still damaged, and why nothing helped."""


def mend(file: FleetFile, repository: str | None = None, *, live: bool = True) -> Outcome:
    """Read back all that is stored, and repair what is damaged.

    First from the other repositories of the fleet; what these cannot help, from the disks of VMs that are
    powered off, as far as they still hold what was saved.

    Args:
        repository: which of them is repaired, by the name of the copy; by default the repository itself.
        live: whether disks are read.

    Raises:
        IntegrityError, TemporaryError: the repository cannot be opened or read.
    """
    target = repository or PRIMARY
    others = [name for name in (PRIMARY, *file.fleet.repository.copies) if name != target]
    with repositories.open_repository(file.at(repository)) as damaged:
        indexes, problems = _reindexed(damaged)
        found = damaged.scrub()
        work = _Work(damaged, found)
        work.done += indexes
        for name in others:
            work.from_copy(file, name)
        if live:
            work.from_disks(file)
    return Outcome(found, tuple(work.done), work.stored, (*problems, *work.still()))


def _reindexed(repository: Repository) -> tuple[list[str], list[str]]:
    """Make lost indexes again; return which, and why it could not be done."""
    try:
        return [f"the index of session {session} from the packs" for session in reindex(repository)], []
    except AccessError as error:
        return [], [f"a damaged index: {error}"]


class _Work:
    def __init__(self, damaged: Repository, found: ScrubReport) -> None:
        self._damaged, self._found = damaged, found
        self._remaining = list(found.damages)
        self._why: dict[str, list[str]] = {}
        self.done: list[str] = []
        self.stored = 0

    def still(self) -> tuple[str, ...]:
        """Return what is damaged still, and why nothing helped."""
        names = dict.fromkeys(map(_what, self._remaining))
        return tuple(why for name in names for why in self._why.get(name, [f"{name}: nothing holds it"]))

    def from_copy(self, file: FleetFile, name: str) -> None:
        if not self._remaining:
            return
        try:
            with repositories.open_repository(file.at(name)) as copy:
                result = repair(self._damaged, copy, self._remaining, self._found.broken)
        except VmkeepError as error:
            for what in dict.fromkeys(map(_what, self._remaining)):
                self._why.setdefault(what, []).append(f"{name}: {error}")
            return
        self.done += [f"{what} from {name}" for what in result.components]
        self.stored += result.size
        for why in result.left:
            self._why.setdefault(why.partition(": ")[0], []).append(f"{name}: {why}")
        self._remaining = [each for each in self._remaining if _what(each) not in result.components]

    def from_disks(self, file: FleetFile) -> None:
        if not self._remaining:
            return
        with contextlib.ExitStack() as stack:
            disks = _LiveDisks(file, stack)
            result = repair_from_disks(self._damaged, self._remaining, self._found.broken, disks.open)
        self._remaining = [damage for damage, _ in result.left]
        still = set(map(_what, self._remaining))
        for what in dict.fromkeys(map(_what, result.mended)):
            self.done.append(f"{what} from its disk{', in part' if what in still else ''}")
        self.stored += result.size
        for damage, why in result.left:
            self._why.setdefault(_what(damage), []).append(
                f"its disk: {_what(damage)}: {damage.place.item} at {damage.place.offset}: {why}"
            )


class _LiveDisks:
    """The disks of the fleet's VMs as they are now."""

    def __init__(self, file: FleetFile, stack: contextlib.ExitStack) -> None:
        self._file, self._stack = file, stack
        self._taken: dict[str, tuple[Hypervisor, Snapshot]] = {}

    def open(self, vm: str, disk: str) -> DiskSource:
        """Open a disk of a VM that is powered off.

        Raises:
            NotFoundError: the fleet has no such VM, or the VM no such disk.
            SourceError: it runs, or is not readable.
        """
        if vm not in self._taken:
            self._taken[vm] = self._snapshot(vm)
        hypervisor, snapshot = self._taken[vm]
        machine = snapshot.machines[vm]
        if disk not in {state.name for state in machine.disks}:
            raise NotFoundError(f"VM {vm} has no disk {disk} any more")
        return hypervisor.open_disk(machine, disk)

    def _snapshot(self, vm: str) -> tuple[Hypervisor, Snapshot]:
        declared = self._file.fleet.vms.get(vm)
        if declared is None:
            raise NotFoundError(f"the fleet has no VM {vm}")
        name = declared.hypervisor
        base = self._file.path.absolute().parent
        try:
            hypervisor = open_hypervisor(name, self._file.fleet.hypervisors[name], base)
            if hypervisor.is_running(vm):
                raise SourceError(f"VM {vm} runs: only disks that lie still are read")
            snapshot = hypervisor.snapshot(f"repair-{vm}", {vm: declared})
        except UnsupportedError as error:
            raise SourceError(str(error)) from error
        self._stack.callback(hypervisor.release, snapshot)
        return hypervisor, snapshot


def _what(damage: Damage) -> str:
    return f"{damage.vm}/{damage.place.component} of {damage.session}"
