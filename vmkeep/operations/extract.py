"""Files out of a recovery point, by how it was saved: neither a fleet file nor a hypervisor is needed.

A component that was saved as files has them. Out of one that was saved as whole disks they are read as the
guest would: the disks are served from the repository, and only what is asked for is fetched.

    repository -> SavedDisk -> NBD server -> overlay -> file system -> spool -> folder or archive
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from vmkeep import fleet as fleets
from vmkeep.components import guest
from vmkeep.components.export import export_tar
from vmkeep.components.files import CATALOGUE, CONTENT
from vmkeep.components.saved import has_files, restore_files
from vmkeep.components.spool import Spool
from vmkeep.components.tree_save import save_tree
from vmkeep.disks import scratch
from vmkeep.disks.nbd_server import serving
from vmkeep.errors import FleetError, InputError, NotFoundError, SourceError, UnsupportedError
from vmkeep.fleet.suggest import suggestion
from vmkeep.operations.mount import whole_disks
from vmkeep.repository import SavedComponent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from vmkeep.components.base import StreamReader
    from vmkeep.disks.file_tree import FileTree
    from vmkeep.repository import Point, Repository, SavedDisk


@dataclass(frozen=True, slots=True)
class Source:
    """Components of one recovery point, which the caller keeps from being collected."""

    repository: Repository
    point: Point
    components: tuple[str, ...]
    whole: bool
    """Whether files are taken out of whole disks."""
    kernel_mounts: bool
    """Whether the host's kernel may open file systems that nothing else can."""


def source(
    repository: Repository, point: Point, parts: Sequence[str], *, single: bool, kernel_mounts: bool
) -> Source:
    """Return where the files of a point come from: of the components that have some, or else of its disks.

    Args:
        parts: kinds or names of components; none means all.
        single: several components with files are refused.

    Raises:
        NotFoundError: the point lacks what is asked for.
        InputError: see *single*.
        UnsupportedError: a component was saved in a way that this version does not know.
    """
    where = f"{point.vm}: recovery point {point.session}"
    for name in matching(point.missing, parts):
        raise NotFoundError(f"{where} has no {name}: {point.missing[name]}")
    named = matching(point.components, parts)
    for part in parts or ("component",):
        if not matching(named, [part] if parts else ()):
            raise NotFoundError(f"{where} has no {part}{suggestion(part, point.components)}")
    with_files = tuple(one for one in named if has_files(point.components[one]))
    if single and with_files and len(named) > 1:
        raise InputError(f"say from which component: {', '.join(f'{point.vm}/{one}' for one in named)}")
    for name in with_files or named:
        if not with_files and not point.components[name].disks:
            raise UnsupportedError(
                f"{where}: {name} is neither disks nor files: use the vmkeep that saved it, or a newer one"
            )
    return Source(repository, point, with_files or named, not with_files, kernel_mounts)


def matching(components: Iterable[str], parts: Sequence[str]) -> tuple[str, ...]:
    """Return the components that *parts* name, each a name or a kind; all of them if there are no parts."""
    return tuple(one for one in components if not parts or {one, one.partition(".")[0]} & {*parts})


def into_folder(
    found: Source,
    folder: Path,
    *,
    paths: Sequence[str] = (),
    owners: bool = True,
    progress: Callable[[int], None],
) -> None:
    """Restore files into *folder*, under their paths in the guest; what is in it stays, but for those paths.

    Args:
        paths: only these files and folders (absolute, as the guest sees them).
        owners: False makes the files ours, which needs no root.

    Raises:
        NotFoundError: the point does not have one of *paths*.
        AccessError: owners or devices are to be restored, and we are not root.
        UnsupportedError: files are on whole disks that cannot be opened here.
    """
    with _opened(found, paths) as components:
        for reader, saved in components:
            restore_files(
                reader,
                saved,
                folder,
                paths=() if found.whole else paths,  # out of disks nothing else was taken
                owners=owners,
                progress=progress,
            )


def as_tar(found: Source, archive: IO[bytes]) -> None:
    """Write the files of the one component as a pax archive.

    Raises:
        UnsupportedError: files are on whole disks that cannot be opened here.
    """
    with _opened(found, ()) as ((reader, saved), *_):
        export_tar(reader, saved, archive)


@contextmanager
def open_disks(repository: Repository, point: Point, *, kernel_mounts: bool) -> Iterator[FileTree]:
    """Open the files on the whole disks of a recovery point, put together as the guest mounts them.

    The caller keeps the point from being collected.

    Raises:
        UnsupportedError: there is no FUSE here, or a file system cannot be opened.
        SourceError: a file system is damaged, or there is none.
        IntegrityError: what is read of a disk is damaged in the repository.
        TemporaryError: the store is away.
    """
    refs = whole_disks(point)
    declared = _declared(point)
    disks = [*declared, *(name for name in refs if name not in declared)]
    with ExitStack() as stack:
        socket = stack.enter_context(scratch.scratch_folder()) / "disks.sock"
        opened = {name: stack.enter_context(repository.open_disk(ref)) for name, ref in refs.items()}
        stack.enter_context(_explained(point, opened))
        stack.enter_context(serving(opened, socket))
        yield stack.enter_context(guest.served(point.vm, socket, disks, refs, kernel_mounts=kernel_mounts))


@contextmanager
def _explained(point: Point, disks: Mapping[str, SavedDisk]) -> Iterator[None]:
    """Say what is wrong with the repository where a file system could only say that it cannot be read."""
    try:
        yield
    except (SourceError, NotFoundError, UnsupportedError) as error:
        for name, disk in disks.items():
            if disk.failure is not None:
                raise type(disk.failure)(
                    f"{point.vm}: recovery point {point.session}: disk {name}: {disk.failure} ({error})"
                ) from error
        raise


@contextmanager
def _opened(found: Source, paths: Sequence[str]) -> Iterator[list[tuple[StreamReader, SavedComponent]]]:
    if found.whole:
        with _out_of_disks(found, paths) as component:
            yield [component]
    else:
        yield [(found.repository, found.point.components[one]) for one in found.components]


@contextmanager
def _out_of_disks(found: Source, paths: Sequence[str]) -> Iterator[tuple[Spool, SavedComponent]]:
    """Take files out of the whole disks of a recovery point, and hold them for as long as the block lasts."""
    point = found.point
    with (
        scratch.scratch_folder() as folder,
        open_disks(found.repository, point, kernel_mounts=found.kernel_mounts) as tree,
    ):
        spool = Spool(folder)
        saved = save_tree(
            tree,
            [os.fsencode(path) for path in paths or ("/",)],
            writer=spool,
            scratch=folder,
            what=f"VM {point.vm}: recovery point {point.session}",
        )
        streams = {CONTENT: saved.content, CATALOGUE: saved.catalogue}
        yield spool, SavedComponent(found.components[0], streams=streams)


def _declared(point: Point) -> list[str]:
    """Return the VM's disks in the order in which its guest counts them, also those that were not saved."""
    try:
        vm = fleets.loads(point.fleet_file).fleet.vms.get(point.vm)
    except FleetError:  # of another version: then those that were saved are all that is known
        return []
    return [] if vm is None else [disk.name for disk in vm.disks]
