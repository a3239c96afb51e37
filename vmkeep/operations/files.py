"""Files of a recovery point without their VM: into a folder, or as a tar archive."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vmkeep import fleet as fleets
from vmkeep.components.base import RestoreContext
from vmkeep.components.export import export_tar
from vmkeep.components.open import open_component
from vmkeep.errors import InputError, NotFoundError
from vmkeep.fleet import Kind, Selection
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations import prepare, repositories
from vmkeep.operations.choose import choose_points
from vmkeep.operations.places import chosen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmkeep.fleet import FleetFile
    from vmkeep.operations.request import Request
    from vmkeep.repository import Point, Repository, SavedComponent


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
    """Components with files in one recovery point of one VM."""

    file: FleetFile
    vm: str
    point: Point
    repository: Repository
    components: tuple[str, ...]

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

    with _chosen(request, single=bool(paths)) as chosen, tempfile.TemporaryDirectory() as scratch:
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
                    scratch=Path(scratch),
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
    components = tuple(one for one in selection.components[vm] if _has_files(file, vm, one))
    if not components:
        raise InputError(
            f"{vm}/{', '.join(selection.components[vm])} is saved as whole disks, not as files: restore it "
            f"under another name (--as {vm}={vm}-copy) and copy them from there"
        )
    if single and len(components) > 1:
        choices = ", ".join(f"{vm}/{one}" for one in components)
        raise InputError(f"say from which component: {choices}")
    with repositories.open_repository(file) as repository:
        session = choose_points(file.fleet, Selection({vm: components}), repository, request)[vm]
        point = repository.point(vm, session)
        with repository.reading(point):
            yield _Chosen(file, vm, point, repository, components)


def _has_files(file: FleetFile, vm: str, component: str) -> bool:
    kind, _, name = component.partition(".")
    return kind != Kind.OS and not (
        kind == Kind.FILESYSTEMS and name in fleets.whole_disks(file.fleet.vms[vm].components)
    )
