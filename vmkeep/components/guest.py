"""The file systems of a VM as one tree, put together as the guest itself mounts them."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.disks import exports, fingerprint, fstab, journal, mounts, scratch
from vmkeep.disks.device import Image
from vmkeep.disks.exports import ExportedDisk
from vmkeep.disks.file_tree import FileTree, show
from vmkeep.disks.nbd_server import serving as nbd_serving
from vmkeep.disks.shown import ShownDisk
from vmkeep.errors import SourceError, UnsupportedError, VmkeepError
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from vmkeep.disks.exports import Volume
    from vmkeep.disks.partitions import Partition
    from vmkeep.hypervisors.base import DiskState, Hypervisor, MachineState

_ROOT_SIGNS: Final = (b"/etc/fstab", b"/etc/os-release", b"/usr/lib/os-release")


@dataclass(frozen=True, slots=True)
class OpenedGuest:
    """A guest's tree of files, and the disks it is made of."""

    name: str
    disks: tuple[ExportedDisk, ...]
    fingerprints: tuple[str, ...]
    """What the image of each disk was when it was opened."""
    tree: FileTree

    def check_unchanged(self) -> None:
        """Compare the images with what they were when they were opened.

        Raises:
            SourceChangedError: one has changed: what was read from it may not be used.
        """
        for disk, mark in zip(self.disks, self.fingerprints, strict=True):
            _check(self.name, disk, mark)


class GuestFiles:
    """Opens the file systems for reading once, for all components of a VM that are saved together.

    Safe to use from several threads; nothing is opened before it is needed.
    """

    def __init__(self, hypervisor: Hypervisor, machine: MachineState) -> None:
        """Remember which VM, as it was at its snapshot."""
        self._hypervisor = hypervisor
        self._machine = machine
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._opened: OpenedGuest | None = None

    def open(self) -> FileTree:
        """Return the guest's files.

        Raises:
            UnsupportedError: there is no FUSE here, or a file system cannot be opened.
            SourceError: an image or file system is damaged, or in use.
            SourceChangedError: an image is not what it was at the snapshot.
        """
        with self._lock:
            if self._opened is None:
                with contextlib.ExitStack() as stack:
                    self._opened = stack.enter_context(self._open())
                    self._stack = stack.pop_all()
            return self._opened.tree

    def check_unchanged(self) -> None:
        """Compare the images with what they were; nothing was read from them if they were never opened.

        Raises:
            SourceChangedError: one has changed: what was read from it may not be used.
        """
        with self._lock:
            if self._opened is not None:
                self._opened.check_unchanged()

    def close(self) -> None:
        """Unmount everything; a second call does nothing.

        Raises:
            SourceChangedError: an image changed while it was open.
        """
        with self._lock:
            opened, self._opened = self._opened, None
            self._stack.close()
        if opened is not None:
            opened.check_unchanged()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with self._lock:
                self._opened = None  # the first error says more
        self.close()

    @contextlib.contextmanager
    def _open(self) -> Iterator[OpenedGuest]:
        name = self._machine.vm
        with scratch.scratch_folder() as folder, _shown(self._hypervisor, self._machine, folder) as machine:
            disks = [
                (_image(machine, state), folder / f"overlay-{index}.qcow2")
                for index, state in enumerate(machine.disks)
            ]
            mounts_allowed = self._hypervisor.kernel_mounts
            with _opened(name, disks, folder=folder, kernel_mounts=mounts_allowed) as opened:
                for disk, state in zip(opened.disks, machine.disks, strict=True):
                    _check(name, disk, state.fingerprint)
                yield opened


@contextlib.contextmanager
def _shown(hypervisor: Hypervisor, machine: MachineState, folder: Path) -> Iterator[MachineState]:
    """Return a captured VM whose disks can be opened here; those that are no files are shown by a server."""
    if machine.socket or all(state.path for state in machine.disks):
        yield machine
        return
    socket = folder / "disks"
    with contextlib.ExitStack() as stack:
        shown = {
            state.name: ShownDisk(stack.enter_context(hypervisor.open_disk(machine, state.name)))
            for state in machine.disks
        }
        stack.enter_context(nbd_serving(shown, socket))
        states = tuple(replace(state, export=state.name) for state in machine.disks)
        yield replace(machine, socket=str(socket), disks=states)


@contextlib.contextmanager
def served(
    name: str, socket: Path, disks: Sequence[str], there: Container[str], *, kernel_mounts: bool
) -> Iterator[FileTree]:
    """Open the files in disks that an NBD server shows; what a replay of a journal writes is thrown away.

    Args:
        name: The VM.
        socket: Of the server, which calls the disks by their names.
        disks: All disks of the VM, in the order in which its guest counts them.
        there: Those that the server has.

    Raises:
        UnsupportedError: there is no FUSE here, or a file system cannot be opened.
        SourceError: a file system is damaged, or there is none.
    """
    with scratch.scratch_folder() as folder:
        images = [
            (Image(disk, socket, "raw", disk), folder / f"overlay-{index}.qcow2")
            for index, disk in enumerate(disks)
            if disk in there
        ]
        with exports.exported(images, folder=folder, what=f"VM {name}") as found:
            by_name = {disk.image.disk: disk for disk in found}
            # /dev/vdc is the third disk also when the second is not there.
            counted = [
                by_name.get(disk, ExportedDisk(Image(disk, socket, "raw"), socket, ())) for disk in disks
            ]
            with contextlib.ExitStack() as stack:
                yield _Assembly(name, counted, stack, kernel_mounts=kernel_mounts).tree()


@contextlib.contextmanager
def writable(hypervisor: Hypervisor, name: str) -> Iterator[FileTree]:
    """Open the guest's files for writing; when the block ends, all of it is in the images, or nothing.

    Raises:
        UnsupportedError: other VMs have their disks in the same folder.
        SourceError: an image is in use or damaged, or the result would be.
        TemporaryError: another restore into the VM takes too long.
    """
    if hypervisor.driver in {"libvirt", "vsphere"}:  # what is written beside the images belongs to one VM
        raise UnsupportedError(
            f"VM {name}: files are not restored into the disks of a storage pool or datastore, which VMs "
            "share: restore them into a folder (--to), or the component os whole"
        )
    scratch.reap()
    images = hypervisor.images(name)
    if not images:
        raise SourceError(
            f"VM {name}: it has no images to restore files into; restore its os component first"
        )
    with contextlib.ExitStack() as stack:
        changes = stack.enter_context(journal.exclusive(images[0].path.parent))
        disks = [(image, image.path.with_name(f".{image.disk}.writing.qcow2")) for image in images]
        for _, overlay in disks:
            overlay.unlink(missing_ok=True)  # of a killed restore; nothing of it was decided
            stack.callback(overlay.unlink, missing_ok=True)
        folder = stack.enter_context(scratch.scratch_folder())
        with _opened(
            name, disks, folder=folder, kernel_mounts=hypervisor.kernel_mounts, verify=True
        ) as opened:
            yield opened.tree
        changes.commit(opened.disks, opened.fingerprints)


@contextlib.contextmanager
def _opened(
    name: str,
    disks: Sequence[tuple[Image, Path]],
    *,
    folder: Path,
    kernel_mounts: bool,
    verify: bool = False,
) -> Iterator[OpenedGuest]:
    """Mount the guest's files; *verify* checks the file systems when they are unmounted again."""
    with exports.exported(disks, folder=folder, what=f"VM {name}") as found:
        marks = tuple(fingerprint.fingerprint(disk.files) if disk.files else "" for disk in found)
        with contextlib.ExitStack() as stack:
            assembly = _Assembly(name, found, stack, kernel_mounts=kernel_mounts)
            yield OpenedGuest(name, found, marks, assembly.tree())
        for where, volume in assembly.mounted if verify else ():
            inside = volume.partition.filesystem
            if inside is not None and inside.is_ext:
                mounts.check_ext(volume, what=f"VM {name}: {where}, after the restore")


def _image(machine: MachineState, disk: DiskState) -> Image:
    """Return where a disk can be read as it was at the snapshot."""
    if disk.export:
        return Image(disk.name, Path(machine.socket), "raw", disk.export)
    return Image(disk.name, Path(disk.path), disk.format)


def _check(name: str, disk: ExportedDisk, mark: str) -> None:
    if not disk.files:
        return  # the NBD server itself holds what it was
    what = f"VM {name}: disk {disk.image.disk} ({disk.image.path})"
    fingerprint.check(disk.files, mark, what=what)


class _Assembly:
    """Mounts what belongs to the tree, each file system once."""

    def __init__(
        self,
        name: str,
        disks: Sequence[ExportedDisk],
        stack: contextlib.ExitStack,
        *,
        kernel_mounts: bool,
    ) -> None:
        self._name, self._disks, self._stack = name, disks, stack
        self._kernel_mounts = kernel_mounts
        self._points: dict[Volume, Path] = {}

    @property
    def mounted(self) -> list[tuple[str, Volume]]:
        """The mounted file systems, each with its place for people."""
        return [(_place(disk, v), v) for disk in self._disks for v in disk.volumes if v in self._points]

    def tree(self) -> FileTree:
        """Find the root file system and mount the others below it, as the guest's /etc/fstab says."""
        root = FileTree(self._root())
        table = root.read(b"/etc/fstab", most=MiB) or b""
        found: dict[tuple[bytes, ...], Path] = {}
        blocked: dict[tuple[bytes, ...], VmkeepError] = {}
        for mount in fstab.parse(table):
            place = fstab.find(mount.source, [[v.partition for v in disk.volumes] for disk in self._disks])
            if not mount.point:
                continue
            where = f"VM {self._name}: {show(mount.point)}"
            if place is None:
                blocked[mount.point] = SourceError(
                    f"{where}: its {mount.source} is on none of the VM's disks"
                )
                continue
            try:
                found[mount.point] = self._mount(*self._volume(*place))
            except UnsupportedError as error:
                blocked[mount.point] = UnsupportedError(f"{where}: {error}")
        return FileTree(root.root, mounts=found, blocked=blocked)

    def _volume(self, index: int, partition: Partition) -> tuple[ExportedDisk, Volume]:
        disk = self._disks[index]
        return disk, next(volume for volume in disk.volumes if volume.partition == partition)

    def _root(self) -> Path:
        candidates = [
            (disk, volume)
            for disk in self._disks
            for volume in disk.volumes
            if mounts.mountable(volume.partition, kernel_mounts=self._kernel_mounts)
        ]
        for disk, volume in candidates:
            point = self._mount(disk, volume)
            if any(FileTree(point).read(sign, most=1) is not None for sign in _ROOT_SIGNS):
                return point
        if len(candidates) == 1 and not self._refused():
            return self._mount(*candidates[0])
        raise self._no_root(len(candidates))

    def _no_root(self, candidates: int) -> VmkeepError:
        refused = self._refused()
        where = f"VM {self._name}"
        if refused:
            return UnsupportedError(f"{where}: {mounts.refusal(refused[0])}")
        if candidates:
            return SourceError(
                f"{where}: none of its {candidates} file systems has an /etc: which is the root?"
            )
        return SourceError(f"{where}: there is no file system on its disks")

    def _refused(self) -> list[Partition]:
        """Return the file systems that only the kernel, or nobody, could open."""
        return [
            volume.partition
            for disk in self._disks
            for volume in disk.volumes
            if volume.partition.filesystem is not None
            and volume.partition.filesystem.kind not in {"swap", "vfat"}
            and not mounts.mountable(volume.partition, kernel_mounts=self._kernel_mounts)
        ]

    def _mount(self, disk: ExportedDisk, volume: Volume) -> Path:
        if volume not in self._points:
            point = volume.path.with_name(volume.path.name.replace("volume", "mount"))
            try:
                self._stack.enter_context(mounts.mounted(volume, point, kernel_mounts=self._kernel_mounts))
            except (UnsupportedError, SourceError) as error:
                raise type(error)(f"{_place(disk, volume)}: {error}") from error
            self._points[volume] = point
        return self._points[volume]


def _place(disk: ExportedDisk, volume: Volume) -> str:
    return f"disk {disk.image.disk}, partition {volume.partition.number}"
