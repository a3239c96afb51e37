"""Opening and making disk images: raw by ourselves, every other format through qemu-storage-daemon."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from vmkeep.disks import direct, fingerprint, locking, qemu_img, scratch, storage_daemon
from vmkeep.disks.nbd_device import NbdDevice
from vmkeep.disks.raw import RawSource, RawTarget
from vmkeep.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from vmkeep.disks.device import DiskSource, DiskTarget, Extent


def inspect(path: Path, format: str, *, what: str) -> qemu_img.ImageInfo:  # noqa: A002
    """Return the shape of an image; a raw one needs no tool.

    Raises:
        SourceError: it is missing, damaged, or refers to a file outside of its own folder.
        UnsupportedError: the format needs qemu-img, and it is not installed.
    """
    if format != "raw":
        return qemu_img.info(path, format, what=what)
    with RawSource(path, what=what) as source:
        return qemu_img.ImageInfo(source.size, path.stat().st_blocks * 512, (path,))


def create(path: Path, format: str, size: int) -> None:  # noqa: A002
    """Make a new sparse image of *size* bytes."""
    if format == "raw":
        RawTarget(path, size=size).close()
    else:
        qemu_img.create(path, format, size)


def grow(path: Path, format: str, size: int, *, what: str) -> None:  # noqa: A002
    """Make an image larger; its content stays.

    Raises:
        SourceChangedError: a virtual machine runs on it.
    """
    if format != "raw":
        qemu_img.grow(path, format, size)
        return
    with locking.locked(path, what=f"{what} ({path})", write=True) as fd:
        os.ftruncate(fd, size)
        os.fsync(fd)


@contextlib.contextmanager
def reader(path: Path, format: str, *, what: str) -> Iterator[DiskSource]:  # noqa: A002
    """Open an image for reading, without looking whether it changes meanwhile."""
    if format == "raw":
        with RawSource(path, what=what) as raw:
            yield raw
        return
    with _exported(path, format, what, writable=False) as device:
        yield device


class ImageSource:
    """An image that is read; it must not change from its fingerprint on until it is closed."""

    def __init__(self, path: Path, format: str, *, what: str, expected: str | None = None) -> None:  # noqa: A002
        """Open an image.

        Args:
            what: How errors call it, such as ``VM db1: disk root``.
            expected: Its fingerprint at the snapshot; by default what it is now.

        Raises:
            SourceError: it is missing or damaged.
            SourceChangedError: a virtual machine runs on it, or it is not what it was.
        """
        self._what = what
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._files = inspect(path, format, what=what).files
            # QEMU's reader would share "write" for raw images; our own lock denies it for all.
            stack.enter_context(locking.locked(path, what=f"{what} ({path})"))
            self._expected = expected if expected is not None else fingerprint.fingerprint(self._files)
            fingerprint.check(self._files, self._expected, what=what)
            self._disk: DiskSource = stack.enter_context(reader(path, format, what=what))
            self._stack = stack.pop_all()

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""
        return self._disk.size

    def extents(self) -> Iterator[Extent]:
        """Yield the ranges that may hold data, in order, merged, inside the disk."""
        return self._disk.extents()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*; all of it, or raise."""
        self._disk.read_into(offset, buffer)

    def close(self) -> None:
        """Let go of the image, and tell whether it stayed the same."""
        files, self._files = self._files, ()
        self._stack.close()
        if files:
            fingerprint.check(files, self._expected, what=self._what)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._files = ()  # the first error says more
        self.close()


@contextlib.contextmanager
def _exported(path: Path, format: str, what: str, *, writable: bool) -> Iterator[NbdDevice]:  # noqa: A002
    with scratch.scratch_folder() as folder:
        socket = folder / "nbd"
        export = {"type": "nbd", "id": "disk", "node-name": "disk", "name": "disk", "writable": writable}
        node = storage_daemon.image_node(
            "disk", path, format, writable=writable, direct=writable and direct.supported(path)
        )
        with (
            storage_daemon.running(
                folder,
                nodes=[node],
                exports=[export],
                # The process id is written when all exports are there.
                ready=(folder / "daemon.pid").exists,
                what=f"{what} ({path})",
                nbd_socket=socket,
            ),
            NbdDevice(socket, "disk", fresh=writable) as device,
        ):
            yield device


class ImageTarget:
    """A new image that is written: sparse, and fresh, because we made it."""

    def __init__(self, path: Path, format: str, *, size: int, what: str) -> None:  # noqa: A002
        """Make and open an image.

        Raises:
            SourceError: it exists, or cannot be made.
        """
        with contextlib.ExitStack() as stack:
            self._disk: DiskTarget
            if format == "raw":
                self._disk = stack.enter_context(RawTarget(path, size=size))
            else:
                if path.exists():
                    raise SourceError(f"{what}: {path} exists already")
                qemu_img.create(path, format, size)
                self._disk = stack.enter_context(_exported(path, format, what, writable=True))
            self._stack = stack.pop_all()

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""
        return self._disk.size

    @property
    def fresh(self) -> bool:
        """Always: it is new."""
        return True

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of *data* at *offset*."""
        self._disk.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, without allocating it where the format can."""
        self._disk.zero(offset, length)

    def flush(self) -> None:
        """Return when everything written is on stable storage."""
        self._disk.flush()

    def close(self) -> None:
        """Let go of the image; a second call does nothing."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
