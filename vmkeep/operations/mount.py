"""Disks of a recovery point that can be read where they are: over NBD, and as raw files through FUSE.

repository -> SavedDisk -> NBD server ─┬─ any NBD client (QEMU, qemu-img, nbdcopy, the kernel)
                                       └─ qemu-storage-daemon -> FOLDER/<disk>.raw
"""

from __future__ import annotations

import contextlib
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.disks import exports, scratch, storage_daemon
from vmkeep.disks.nbd_server import serving
from vmkeep.errors import InputError, NotFoundError
from vmkeep.fleet.suggest import suggestion
from vmkeep.operations import repositories

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vmkeep.fleet import FleetFile
    from vmkeep.repository import DiskRef, Point

_PATIENCE_S: Final = 120.0
"""How long a store may be away before whoever reads is told: guests do not take an error well."""


@dataclass(frozen=True, slots=True)
class Mount:
    """What is served, and where."""

    point: Point
    uris: Mapping[str, str]
    """For QEMU and its tools, by disk."""
    files: Mapping[str, Path]
    """Raw files, read-only, by disk; empty when no folder was asked for."""


@dataclass(frozen=True, slots=True)
class Where:
    """How disks are offered."""

    address: Path | tuple[str, int] | None = None
    """A unix socket, or host and port; a socket in a private folder by default."""
    folder: Path | None = None
    """An empty folder, or one that is made, for raw files."""


@contextlib.contextmanager
def mounted(file: FleetFile, target: str, session: str, where: Where) -> Iterator[Mount]:
    """Serve the disks of a recovery point for the length of a `with` block; it is not collected meanwhile.

    Args:
        target: a VM, or `vm/disk`.
        session: of the recovery point, or its beginning, or `latest`.

    Raises:
        NotFoundError: there is no such recovery point, or no whole disk is in it.
        InputError: there is no such disk, or it cannot be offered there.
        UnsupportedError: files were asked for, and there is no FUSE here.
    """
    vm, _, only = target.partition("/")
    with contextlib.ExitStack() as stack:
        repository = stack.enter_context(repositories.open_repository(file))
        point = repository.point(vm, session)
        stack.enter_context(repository.reading(point))
        refs = _chosen(point, only)
        disks = {
            name: stack.enter_context(repository.open_disk(ref, patience_s=_PATIENCE_S))
            for name, ref in refs.items()
        }
        private = stack.enter_context(scratch.scratch_folder())
        address = where.address or private / "nbd.sock"
        stack.enter_context(serving(disks, address))
        files: dict[str, Path] = {}
        if where.folder is not None:
            socket = private / "files.sock"
            stack.enter_context(serving(disks, socket))
            files = stack.enter_context(_as_files(list(disks), socket, where.folder, private))
        yield Mount(point, {name: _uri(name, address) for name in disks}, files)


def whole_disks(point: Point) -> dict[str, DiskRef]:
    """Return the disks that a recovery point holds whole, by name."""
    return {name: ref for one in point.components.values() for name, ref in one.disks.items()}


def _chosen(point: Point, only: str) -> dict[str, DiskRef]:
    """Return the whole disks of a point by name, or the one that is asked for."""
    found = whole_disks(point)
    if not found:
        raise NotFoundError(
            f"recovery point {point.session} of {point.vm} holds no whole disk: "
            f"'vmkeep restore {point.vm}/COMPONENT --to FOLDER' restores its files"
        )
    if only and only not in found:
        raise InputError(f"{point.vm} has no disk {only!r} in {point.session}{suggestion(only, found)}")
    return {only: found[only]} if only else found


@contextlib.contextmanager
def _as_files(names: list[str], socket: Path, folder: Path, private: Path) -> Iterator[dict[str, Path]]:
    """Offer the exports behind *socket* as raw files in *folder*."""
    exports.require_fuse()
    # They are mounted in our own folder, where the next vmkeep finds them if this one is killed.
    files = {folder / f"{name}.raw": private / f"{name}.raw" for name in names}
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, real in files.items():
            real.touch()
            if path.is_symlink() and not path.exists():  # one that was killed left it
                path.unlink()
            path.symlink_to(real)
            made.append(path)
    except OSError as error:
        _remove(made)
        raise InputError(f"cannot offer files in {folder}: {error.strerror}: say an empty folder") from error
    nodes = [
        {
            "driver": "nbd", "node-name": f"disk-{number}", "read-only": True, "export": name,
            "server": {"type": "unix", "path": str(socket)},
        }
        for number, name in enumerate(names)
    ]  # fmt: skip
    offered = [
        {
            "type": "fuse", "id": f"file-{number}", "node-name": f"disk-{number}",
            "mountpoint": str(private / f"{name}.raw"), "writable": False, "allow-other": "off",
        }
        for number, name in enumerate(names)
    ]  # fmt: skip
    try:
        with storage_daemon.running(
            private, nodes=nodes, exports=offered, ready=(private / "daemon.pid").exists, what=str(folder)
        ):
            yield dict(zip(names, files, strict=True))
    finally:
        _remove(made)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _uri(name: str, address: Path | tuple[str, int]) -> str:
    if isinstance(address, tuple):
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"nbd://{host}:{address[1]}/{name}"
    return f"nbd+unix:///{name}?socket={urllib.parse.quote(str(address.absolute()))}"
