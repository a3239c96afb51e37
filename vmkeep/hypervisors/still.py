"""Disks that lie still: images of powered-off VMs, known by their fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmkeep.disks import fingerprint, images
from vmkeep.errors import InputError

if TYPE_CHECKING:
    from vmkeep.hypervisors.base import DiskState, MachineState


def still_disk(vm: str, disk: DiskState) -> DiskState:
    """Return *disk* with what its image is now; nobody may be able to write it meanwhile.

    Raises:
        SourceError: the image is missing or damaged.
    """
    shape = images.inspect(Path(disk.path), disk.format, what=f"VM {vm}: disk {disk.name}")
    taken = fingerprint.fingerprint(shape.files)
    mark = taken if fingerprint.proves_content(taken) else ""
    return replace(disk, size=shape.size, allocated=shape.allocated, fingerprint=taken, mark=mark)


def find_disk(machine: MachineState, disk: str) -> DiskState:
    """Return a disk of a captured VM.

    Raises:
        InputError: the snapshot does not have it.
    """
    for state in machine.disks:
        if state.name == disk:
            return state
    raise InputError(f"VM {machine.vm}: disk {disk} is not in the snapshot")
