"""Which areas of a disk changed, as vSphere tracks it (Changed Block Tracking).

A mark is what a recovery point keeps of a disk: its UUID, and the change that later ones are asked since by.

    6000C29a-.../52 3d 04 .../17
    disk's UUID  changeId: the tracking's own id, and a number

All that may be wrong makes a mark lost, and the disk is read in full: vSphere begins to track anew when a
disk is extended, when a VM is reverted to a snapshot, and when a host fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkeep.disks.device import Extent
from vmkeep.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyVmomi import vim

    from vmkeep.hypervisors.vsphere.connection import Connection
    from vmkeep.hypervisors.vsphere.machine import Disk

ALLOCATED: Final = "*"
"""In place of a change: all areas that hold data."""


def mark(disk: Disk) -> str:
    """Return the mark of a disk as it is in a snapshot; empty: its changes are not tracked."""
    return f"{disk.uuid}/{disk.change_id}" if disk.uuid and disk.change_id else ""


def change_of(since: str, now: str) -> str:
    """Return the change that a mark names, or nothing if it is of another disk or of other tracking.

    Args:
        now: The mark of the disk in the present snapshot.
    """
    uuid, _, change = since.partition("/")
    present, _, current = now.partition("/")
    same = uuid == present and change.partition("/")[0] == current.partition("/")[0]
    return change if uuid and change and same else ""


def areas(
    connection: Connection, vm: vim.VirtualMachine, snapshot: vim.vm.Snapshot, disk: Disk, change: str
) -> list[Extent]:
    """Return the areas of a disk that changed up to a snapshot.

    An answer tells about a part of the disk only, at most about 2000 areas: it is asked until all is told.

        asked     [0 ........................................ size)
        answer 1  [startOffset ...... + length)
        answer 2                               [startOffset ... + length)

    Raises:
        SourceError: it is not known.
    """
    what = f"changes of disk {disk.name} since {change}"
    found: list[Extent] = []
    offset = 0
    while offset < disk.size:
        answer = connection.read(
            what,
            lambda offset=offset: vm.QueryChangedDiskAreas(  # type: ignore[misc]
                snapshot=snapshot, deviceKey=disk.key, startOffset=offset, changeId=change
            ),
        )
        end = int(answer.startOffset) + int(answer.length)
        if answer.startOffset > offset or end <= offset:
            raise SourceError(f"{what}: vSphere told nothing about what lies at {offset}")
        found += [Extent(int(one.start), int(one.length)) for one in answer.changedArea or ()]
        offset = end
    return merged(found, disk.size)


def merged(extents: Iterable[Extent], size: int) -> list[Extent]:
    """Return extents in order, not overlapping, inside of a disk of *size* bytes."""
    result: list[Extent] = []
    for one in sorted(extents):
        start, end = max(0, one.start), min(one.end, size)
        if start >= end:
            continue
        if result and start <= result[-1].end:
            last = result.pop()
            start, end = last.start, max(last.end, end)
        result.append(Extent(start, end - start))
    return result
