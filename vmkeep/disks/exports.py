"""The disks of a VM as plain files on this host, behind overlays.

    image  <-backing-  overlay (qcow2)  <-FUSE export of qemu-storage-daemon-  disk-0 (a raw file)

Whatever is written to the file, also a replay of a journal, stays in the overlay. The image is locked
against virtual machines and never written here.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.disks import images, locking, qemu_img, storage_daemon
from vmkeep.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vmkeep.disks.device import Image


@dataclass(frozen=True, slots=True)
class ExportedDisk:
    """A disk that can be opened like a raw file."""

    image: Image
    overlay: Path
    path: Path
    """The raw file."""
    files: tuple[Path, ...]
    """All files the image's content lies in."""


@contextlib.contextmanager
def exported(
    disks: Sequence[tuple[Image, Path]], *, folder: Path, what: str
) -> Iterator[tuple[ExportedDisk, ...]]:
    """Offer each image as a raw file in *folder*; its changes go to the overlay named with it.

    The overlays are made here, and stay when the block ends: complete and flushed, for the caller.

    Raises:
        UnsupportedError: there is no FUSE here.
        SourceError: an image is missing, damaged, or in use.
    """
    require_fuse()
    with contextlib.ExitStack() as stack:
        nodes, exports, found = [], [], []
        for index, (image, overlay) in enumerate(disks):
            name = f"{what}: disk {image.disk}"
            shape = images.inspect(image.path, image.format, what=name)
            stack.enter_context(locking.locked(image.path, what=f"{name} ({image.path})"))
            qemu_img.create(overlay, "qcow2", shape.size, backing=(image.path, image.format))
            point = folder / f"disk-{index}"
            point.touch()
            node = storage_daemon.image_node(f"disk{index}", overlay, "qcow2", writable=True)
            base = storage_daemon.image_node(f"base{index}", image.path, image.format, writable=False)
            nodes.append(node | {"backing": base})
            exports.append(
                {
                    "type": "fuse",
                    "id": f"export{index}",
                    "node-name": f"disk{index}",
                    "mountpoint": str(point),
                    "writable": True,
                    "allow-other": "off",
                }
            )
            found.append(ExportedDisk(image, overlay, point, shape.files))
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
