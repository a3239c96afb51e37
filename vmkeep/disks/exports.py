"""The file systems of a VM's disks as plain files on this host, behind overlays.

    image <-backing- overlay (qcow2) <- a window on each partition <-FUSE export- volume-0-1 (a raw file)

Whatever is written to the files, also a replay of a journal, stays in the overlay. The image is locked
against virtual machines and never written here. In its place there may be an NBD server that shows the disk
of a running VM as it was at a snapshot.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmkeep.disks import images, locking, qemu_img, storage_daemon
from vmkeep.disks.nbd_device import NbdDevice
from vmkeep.disks.partitions import Partition, read_partitions
from vmkeep.errors import SourceError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmkeep.disks.device import DiskSource, Image


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition that can be opened like a raw file."""

    partition: Partition
    path: Path


@dataclass(frozen=True, slots=True)
class ExportedDisk:
    """A disk whose partitions can be opened."""

    image: Image
    overlay: Path
    files: tuple[Path, ...]
    """All files the image's content lies in; none for what an NBD server shows."""
    volumes: tuple[Volume, ...] = ()
    """Its partitions with something in them; one for a disk without a partition table."""


@contextlib.contextmanager
def exported(
    disks: Sequence[tuple[Image, Path]], *, folder: Path, what: str
) -> Iterator[tuple[ExportedDisk, ...]]:
    """Offer each partition as a raw file in *folder*; changes go to the overlay named with its image.

    The overlays are made here, and stay when the block ends: complete and flushed, for the caller.

    Raises:
        UnsupportedError: there is no FUSE here.
        SourceError: an image is missing, damaged, or in use.
    """
    require_fuse()
    with contextlib.ExitStack() as stack:
        found = [
            _open(image, overlay, folder / f"volume-{index}", what, stack)
            for index, (image, overlay) in enumerate(disks)
        ]
        nodes = [node for disk in found for node in _nodes(disk)]
        exports = [_export(volume) for disk in found for volume in disk.volumes]
        stack.enter_context(
            storage_daemon.running(
                folder, nodes=nodes, exports=exports, ready=(folder / "daemon.pid").exists, what=what
            )
        )
        yield tuple(found)


def require_fuse() -> None:
    """Check that this process may use FUSE.

    Raises:
        UnsupportedError: it may not; says what helps.
    """
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise UnsupportedError(
            "files inside of images need /dev/fuse, which is missing or not ours: load the module fuse, "
            "or start the container with --device /dev/fuse --cap-add SYS_ADMIN; disks are saved without it"
        )


def _open(image: Image, overlay: Path, prefix: Path, what: str, stack: contextlib.ExitStack) -> ExportedDisk:
    """Lock an image, make its overlay, and look what is in it."""
    name = f"{what}: disk {image.disk}"
    files: tuple[Path, ...] = ()
    if image.export:
        with NbdDevice(image.path, image.export) as device:
            partitions = _partitions(device, name)
        qemu_img.create(overlay, "qcow2", device.size)
    else:
        shape = images.inspect(image.path, image.format, what=name)
        files = shape.files
        stack.enter_context(locking.locked(image.path, what=f"{name} ({image.path})"))
        with images.reader(image.path, image.format, what=name) as source:
            partitions = _partitions(source, name)
        qemu_img.create(overlay, "qcow2", shape.size, backing=(image.path, image.format))
    volumes = []
    for partition in partitions:
        if partition.filesystem is not None:
            volumes.append(Volume(partition, Path(f"{prefix}-{partition.number}")))
            volumes[-1].path.touch()
    return ExportedDisk(image, overlay, files, tuple(volumes))


def _partitions(source: DiskSource, name: str) -> list[Partition]:
    try:
        return [*read_partitions(source)]
    except SourceError as error:
        raise SourceError(f"{name}: {error}") from error


def _nodes(disk: ExportedDisk) -> Iterator[dict[str, Any]]:
    """Describe the overlay, and on it a window for each partition.

    A tool that is told an offset instead forgets it: e2fsck 1.47 opens the file anew after replaying a
    journal, without the offset.
    """
    # Node names are ours: a disk may be called anything.
    name = f"disk-{disk.overlay.stat().st_ino}"
    overlay = storage_daemon.image_node(name, disk.overlay, "qcow2", writable=True)
    yield overlay | {"backing": _base(f"base-{name}", disk.image)}
    for volume in disk.volumes:
        yield {
            "driver": "raw",
            "node-name": volume.path.name,
            "offset": volume.partition.start,
            "size": volume.partition.length // 512 * 512,  # QEMU counts in sectors
            "discard": "unmap",
            "file": name,
        }


def _base(name: str, image: Image) -> dict[str, Any]:
    if not image.export:
        return storage_daemon.image_node(name, image.path, image.format, writable=False)
    server = {"type": "unix", "path": str(image.path)}
    return {"driver": "nbd", "node-name": name, "server": server, "export": image.export, "read-only": True}


def _export(volume: Volume) -> dict[str, Any]:
    return {
        "type": "fuse",
        "id": volume.path.name,
        "node-name": volume.path.name,
        "mountpoint": str(volume.path),
        "writable": True,
        "allow-other": "off",
    }
