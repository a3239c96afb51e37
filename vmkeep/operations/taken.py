"""The snapshots of a run: what survives the process of them, so that the next one can undo or go on.

<run>/snapshots/<group>   the snapshots of a group: first as prepared, then as taken
<run>/held/<group>        the VMs whose guests were frozen, or prepared by hooks, and not let go yet
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vmkeep.errors import NotFoundError
from vmkeep.hypervisors.base import DiskState, MachineState, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


class Taken:
    """The snapshots in the folder of a run. Safe to use from several threads, each for its own group."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, group: str, snapshots: Sequence[Snapshot]) -> None:
        """Remember the snapshots of one group, one for each hypervisor that its VMs run on."""
        content = json.dumps([asdict(snapshot) for snapshot in snapshots])
        write_whole(self._folder / "snapshots" / group, content.encode())

    def drop(self, group: str) -> None:
        """Forget the snapshots of a group: they were released for good."""
        (self._folder / "snapshots" / group).unlink(missing_ok=True)

    def of_group(self, group: str) -> list[Snapshot]:
        """Return the snapshots of a group."""
        try:
            content = (self._folder / "snapshots" / group).read_bytes()
        except FileNotFoundError:
            return []
        return [_snapshot(value) for value in json.loads(content)]

    def groups(self) -> list[str]:
        """Return the groups that have snapshots."""
        return _names(self._folder / "snapshots")

    def all(self) -> Iterator[Snapshot]:
        """Yield the snapshots of all groups."""
        for group in self.groups():
            yield from self.of_group(group)

    def of(self, vm: str) -> Snapshot:
        """Return the snapshot that holds *vm*.

        Raises:
            NotFoundError: there is none.
        """
        for snapshot in self.all():
            if vm in snapshot.machines:
                return snapshot
        raise NotFoundError(f"VM {vm}: run {self._folder.name} has no snapshot of it")

    def machine(self, vm: str) -> MachineState:
        """Return *vm* as it was at its snapshot."""
        return self.of(vm).machines[vm]

    def hold(self, group: str, vms: Sequence[str]) -> None:
        """Remember that the guests of these VMs are to be thawed, and their hooks to be ended."""
        write_whole(self._folder / "held" / group, json.dumps([*vms]).encode())

    def let_go(self, group: str) -> None:
        """Forget it: they were."""
        (self._folder / "held" / group).unlink(missing_ok=True)

    def held(self) -> dict[str, list[str]]:
        """Return the VMs whose guests were not let go, by group."""
        folder = self._folder / "held"
        return {group: json.loads((folder / group).read_bytes()) for group in _names(folder)}


def _names(folder: Path) -> list[str]:
    # What begins with a dot is being written now.
    return sorted(path.name for path in folder.glob("[!.]*"))


def write_whole(path: Path, body: bytes) -> None:
    """Write a file of a run; after a crash it is there whole, or as it was."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _snapshot(value: Mapping[str, Any]) -> Snapshot:
    machines = {
        name: MachineState(**{**machine, "disks": tuple(DiskState(**disk) for disk in machine["disks"])})
        for name, machine in value["machines"].items()
    }
    return Snapshot(**{**value, "machines": machines, "remarks": tuple(value["remarks"])})
