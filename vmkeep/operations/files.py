"""Files of a recovery point without their VM: into a folder, or as a tar archive.

A component that was saved as files has them. Out of one that was saved as whole disks they are read as the
guest would: the disks are served from the repository, and only what is asked for is fetched.

    repository -> SavedDisk -> NBD server -> overlay -> file system -> spool -> folder or archive
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vmkeep import fleet as fleets
from vmkeep.components import guest
from vmkeep.components.base import RestoreContext
from vmkeep.components.export import export_tar
from vmkeep.components.files import CATALOGUE, CONTENT, plain_folder
from vmkeep.components.open import open_component
from vmkeep.components.spool import Spool
from vmkeep.components.tree_restore import Choice, restore_tree
from vmkeep.components.tree_save import save_tree
from vmkeep.disks import scratch
from vmkeep.disks.nbd_server import serving
from vmkeep.errors import InputError, NotFoundError
from vmkeep.fleet import Kind, Selection
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations import prepare, repositories
from vmkeep.operations.choose import choose_points
from vmkeep.operations.mount import whole_disks
from vmkeep.operations.places import chosen
from vmkeep.repository import SavedComponent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmkeep.disks.file_tree import FileTree
    from vmkeep.fleet import FleetFile
    from vmkeep.operations.request import Request
    from vmkeep.repository import Point, Repository


@dataclass(frozen=True, slots=True)
class FilesReport:
    """What was restored from where."""

    vm: str
    session: str
    components: tuple[str, ...]
    size: int
    """Bytes written into files; 0 where nobody counted."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Components in one recovery point of one VM."""

    file: FleetFile
    vm: str
    point: Point
    repository: Repository
    components: tuple[str, ...]
    whole: bool
    """Whether they were saved as whole disks."""

    def saved(self, component: str) -> SavedComponent:
        """Return the component as it was saved."""
        found = self.point.components.get(component)
        if found is None:
            why = self.point.missing.get(component, "it was not part of that backup")
            raise NotFoundError(f"{self.vm}: recovery point {self.point.session} has no {component}: {why}")
        return found

    def report(self, size: int = 0) -> FilesReport:
        return FilesReport(self.vm, self.point.session, self.components, size)


def into_folder(
    request: Request,
    folder: Path,
    *,
    paths: Sequence[str] = (),
    owners: bool = True,
    progress: Callable[[int], None] | None = None,
) -> FilesReport:
    """Restore the files that *request* selects into *folder*, under their paths in the guest.

    What is in the folder stays, unless a file of the same path is restored over it.

    Args:
        paths: only these files and folders (absolute, as the guest sees them), from one component.
        owners: False makes the files ours, which needs no root.

    Raises:
        InputError: the request does not select components with files of one VM.
        NotFoundError: there is no recovery point of them, or it does not have one of *paths*.
        AccessError: owners or devices are to be restored, and we are not root.
    """
    written = 0

    def count(size: int) -> None:
        nonlocal written
        written += size
        if progress is not None:
            progress(size)

    with _chosen(request, single=bool(paths)) as chosen, tempfile.TemporaryDirectory() as private:
        if chosen.whole:
            with _out_of_disks(chosen, paths) as (spool, saved):
                restore_tree(
                    spool,
                    content=saved.streams[CONTENT],
                    catalogue_ref=saved.streams[CATALOGUE],
                    into=plain_folder(folder),
                    choice=Choice(owners=owners),
                    what=str(folder),
                    progress=count,
                )
            return chosen.report(written)
        vm = chosen.file.fleet.vms[chosen.vm]
        hypervisor = open_hypervisor(
            vm.hypervisor, chosen.file.fleet.hypervisors[vm.hypervisor], chosen.file.path.absolute().parent
        )
        for component in chosen.components:
            open_component(chosen.vm, vm, component).restore(
                RestoreContext(
                    name=chosen.vm,
                    component=component,
                    hypervisor=hypervisor,
                    reader=chosen.repository,
                    scratch=Path(private),
                    folder=folder,
                    paths=tuple(paths),
                    exact=False,  # the folder is the caller's: nothing in it is removed
                    owners=owners,
                    progress=count,
                ),
                chosen.saved(component),
            )
        return chosen.report(written)


def as_tar(request: Request, archive: IO[bytes]) -> FilesReport:
    """Write the files of the one component that *request* selects as a pax archive.

    Raises:
        InputError: the request does not select one component with files.
        NotFoundError: there is no recovery point of it.
    """
    with _chosen(request, single=True) as chosen:
        if chosen.whole:
            with _out_of_disks(chosen, ()) as (spool, saved):
                export_tar(spool, saved, archive)
        else:
            export_tar(chosen.repository, chosen.saved(chosen.components[0]), archive)
        return chosen.report()


def points_of_run(file: FleetFile, request: Request, repository: Repository, run: str) -> dict[str, str]:
    """Return the recovery points that *run* made of the VMs that *request* selects.

    Raises:
        NotFoundError: it made none of one of them.
    """
    found = {}
    for vm in prepare.selected(file, request).vms:
        made = [point for point in repository.points(vm) if point.run == run]
        if not made:
            raise NotFoundError(f"run {run} made no recovery point of {vm}; 'vmkeep points {vm}' lists them")
        found[vm] = made[-1].session
    return found


@contextmanager
def _chosen(request: Request, *, single: bool) -> Iterator[_Chosen]:
    """Open the recovery point that *request* asks for.

    Args:
        single: more than one component is refused.
    """
    file = fleets.load(request.fleet)
    selection = prepare.selected(file, request)
    file = file.at(chosen(file, request).repository)
    if len(selection.vms) != 1:
        raise InputError(f"files are restored from one VM at a time, not from {', '.join(selection.vms)}")
    (vm,) = selection.vms
    with_files = tuple(one for one in selection.components[vm] if _has_files(file, vm, one))
    components = with_files or tuple(selection.components[vm])
    if single and with_files and len(selection.components[vm]) > 1:
        choices = ", ".join(f"{vm}/{one}" for one in selection.components[vm])
        raise InputError(f"say from which component: {choices}")
    with repositories.open_repository(file) as repository:
        session = choose_points(file.fleet, Selection({vm: components}), repository, request)[vm]
        point = repository.point(vm, session)
        with repository.reading(point):
            yield _Chosen(file, vm, point, repository, components, whole=not with_files)


@contextmanager
def _out_of_disks(chosen: _Chosen, paths: Sequence[str]) -> Iterator[tuple[Spool, SavedComponent]]:
    """Take files out of the whole disks of a recovery point, and hold them for as long as the block lasts.

    Raises:
        NotFoundError: the component was not saved, or one of *paths* is not there.
        UnsupportedError: there is no FUSE here, or a file system cannot be opened.
    """
    for component in chosen.components:
        chosen.saved(component)
    with scratch.scratch_folder() as folder, open_disks(chosen.file, chosen.repository, chosen.point) as tree:
        spool = Spool(folder)
        saved = save_tree(
            tree,
            [os.fsencode(path) for path in paths or ("/",)],
            writer=spool,
            scratch=folder,
            what=f"VM {chosen.vm}: recovery point {chosen.point.session}",
        )
        streams = {CONTENT: saved.content, CATALOGUE: saved.catalogue}
        yield spool, SavedComponent(chosen.components[0], streams=streams)


@contextmanager
def open_disks(file: FleetFile, repository: Repository, point: Point) -> Iterator[FileTree]:
    """Open the files on the whole disks of a recovery point, put together as the guest mounts them.

    The caller keeps the point from being collected.

    Raises:
        UnsupportedError: there is no FUSE here, or a file system cannot be opened.
        SourceError: a file system is damaged, or there is none.
    """
    vm = file.fleet.vms[point.vm]
    refs = whole_disks(point)
    declared = [disk.name for disk in vm.disks]
    disks = [*declared, *(name for name in refs if name not in declared)]
    config = file.fleet.hypervisors[vm.hypervisor]
    kernel_mounts = getattr(config, "kernel_mounts", False)  # not every driver can be told so
    with ExitStack() as stack:
        socket = stack.enter_context(scratch.scratch_folder()) / "disks.sock"
        opened = {name: stack.enter_context(repository.open_disk(ref)) for name, ref in refs.items()}
        stack.enter_context(serving(opened, socket))
        yield stack.enter_context(guest.served(point.vm, socket, disks, refs, kernel_mounts=kernel_mounts))


def _has_files(file: FleetFile, vm: str, component: str) -> bool:
    kind, _, name = component.partition(".")
    return kind != Kind.OS and not (
        kind == Kind.FILESYSTEMS and name in fleets.whole_disks(file.fleet.vms[vm].components)
    )
