"""Files of a recovery point without their VM: into a folder, or as a tar archive.

Which components there are, and how they were saved, says the recovery point: the fleet file may have changed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import IO, TYPE_CHECKING

from vmkeep import fleet as fleets
from vmkeep.errors import InputError, IntegrityError, NotFoundError
from vmkeep.fleet.suggest import suggestion
from vmkeep.operations import extract, prepare, repositories
from vmkeep.operations.choose import candidates, require_newest
from vmkeep.operations.extract import matching
from vmkeep.operations.places import chosen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from vmkeep.errors import VmkeepError
    from vmkeep.fleet import FleetFile
    from vmkeep.operations.choose import Damaged
    from vmkeep.operations.extract import Source
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
    doubts: tuple[str, ...] = ()
    """Why a copy was read, which may be behind."""


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

    doubts: list[str] = []
    with _source(request, doubts.append, single=bool(paths)) as found:
        extract.into_folder(found, folder, paths=paths, owners=owners, progress=count)
        return FilesReport(found.point.vm, found.point.session, found.components, written, (*doubts,))


def as_tar(request: Request, archive: IO[bytes]) -> FilesReport:
    """Write the files of the one component that *request* selects as a pax archive.

    Raises:
        InputError: the request does not select one component with files.
        NotFoundError: there is no recovery point of it.
    """
    doubts: list[str] = []
    with _source(request, doubts.append, single=True) as found:
        extract.as_tar(found, archive)
        return FilesReport(found.point.vm, found.point.session, found.components, 0, (*doubts,))


def points_of_run(
    file: FleetFile, request: Request, repository: Repository, run: str, *, of_files: bool
) -> dict[str, str]:
    """Return the recovery points that *run* made of the VMs that *request* selects.

    Args:
        of_files: files are restored: of a VM that the fleet file need not declare any more.

    Raises:
        NotFoundError: it made none of one of them.
    """
    found = {}
    for vm in (_vm(file, repository, request),) if of_files else prepare.selected(file, request).vms:
        made = [point for point in repository.points(vm) if point.run == run]
        if not made:
            raise NotFoundError(f"run {run} made no recovery point of {vm}; 'vmkeep points {vm}' lists them")
        found[vm] = made[-1].session
    return found


def kernel_mounts(file: FleetFile, vm: str) -> bool:
    """Tell whether the host's kernel may open file systems of a VM, which may be declared no more."""
    declared = file.fleet.vms.get(vm)
    config = declared and file.fleet.hypervisors[declared.hypervisor]
    return bool(getattr(config, "kernel_mounts", False))  # not every driver can be told so


@contextmanager
def _source(request: Request, told: Callable[[str], None], *, single: bool) -> Iterator[Source]:
    """Open the recovery point that *request* asks for.

    Args:
        told: why a copy is read.
        single: more than one component is refused.
    """
    file = fleets.load(request.fleet)
    file = file.at(chosen(file, request, told, points=_points).repository)
    with repositories.open_repository(file) as repository:
        damaged: list[Damaged] = []
        vm, parts, point = _point(file, repository, request, damaged)
        require_newest({vm: point}, damaged)
        with repository.reading(point):
            yield extract.source(
                repository, point, parts, single=single, kernel_mounts=kernel_mounts(file, vm)
            )


def _points(file: FleetFile, request: Request, damaged: list[Damaged]) -> dict[str, Point]:
    """Return which point would be restored from one place."""
    with repositories.open_repository(file) as repository:
        vm, _, point = _point(file, repository, request, damaged)
        return {vm: point}


def _point(
    file: FleetFile, repository: Repository, request: Request, damaged: list[Damaged]
) -> tuple[str, Sequence[str], Point]:
    """Return the VM, the kinds or names of components that are wanted of it, and the point that has them.

    The newest that has all that the fleet file declares of them now; or else that lacks nothing of what was
    declared when it was made.
    """
    vm = _vm(file, repository, request)
    parts: Sequence[str] = _parts(request)
    strangers = set(request.points) - {vm}
    if strangers:
        raise InputError(f"--point names {', '.join(sorted(strangers))}, which is not restored")
    found = candidates(vm, repository, request, damaged)
    declared = fleets.component_names(file.fleet.vms[vm]) if vm in file.fleet.vms else ()
    wanted = {*_named(declared, parts, request.kinds)}
    usable = found
    if vm not in request.points:
        usable = [point for point in found if wanted and wanted <= {*point.components}]
        usable = usable or [point for point in found if _holds(point, parts, request.kinds)]
    if not usable:
        raise _none(vm, parts, {*declared, *(one for point in found for one in point.components)}, damaged)
    point = usable[-1]
    if request.kinds:
        parts = _named({**point.components, **point.missing}, parts, request.kinds) or request.kinds
    return vm, parts, point


def _vm(file: FleetFile, repository: Repository, request: Request) -> str:
    """Return the one VM that is asked for: one that is declared, or that was saved.

    Raises:
        InputError: there is none, or several.
    """
    if not request.targets:
        names = [*fleets.select(file.fleet, (), request.kinds).vms]
    else:
        patterns = dict.fromkeys(target.partition("/")[0] for target in request.targets)
        known = dict.fromkeys(file.fleet.vms)
        if not {*patterns} <= {*known}:
            known |= dict.fromkeys(info.vm for info in repository.list_points())
        names = []
        for pattern in patterns:
            these = [name for name in known if name == pattern or fnmatchcase(name, pattern)]
            if not these:
                raise InputError(
                    f"there is no VM {pattern!r} in fleet {file.fleet.fleet}, and no recovery point of one"
                    f"{suggestion(pattern, known)}"
                )
            names += these
    if len({*names}) != 1:
        raise InputError(f"files are restored from one VM at a time, not from {', '.join(names)}")
    return names[0]


def _parts(request: Request) -> list[str]:
    """Return the kinds or names of components that the targets name; none if one of them is the whole VM."""
    parts = [target.partition("/")[2] for target in request.targets]
    return parts if all(parts) else []


def _named(components: Iterable[str], parts: Sequence[str], kinds: Sequence[str]) -> tuple[str, ...]:
    return matching(matching(components, parts), kinds)


def _holds(point: Point, parts: Sequence[str], kinds: Sequence[str]) -> bool:
    named = _named(point.components, parts, kinds)
    lacks = _named(point.missing, parts, kinds)
    return bool(named) and not lacks and all(matching(named, [part]) for part in parts)


def _none(vm: str, parts: Sequence[str], known: set[str], damaged: Sequence[Damaged]) -> VmkeepError:
    """Return why no recovery point can be used."""
    mine = [error for info, error in damaged if info.vm == vm]
    for part in parts:
        if not mine and not matching(known, [part]):
            return InputError(f"VM {vm} has no component {part!r}{suggestion(part, sorted(known))}")
    text = (
        f"VM {vm} has no recovery point that holds all that is to be restored: 'vmkeep points {vm}' lists "
        f"what there is; name the components to restore, such as {vm}/os, to do with less"
    )
    return IntegrityError(f"{text}; {mine[-1]}") if mine else NotFoundError(text)
