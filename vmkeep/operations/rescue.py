"""Restore recovery points with nothing but the store and a key: no fleet file, no hypervisor.

FOLDER/<vm>/vm.json                the definition, as the driver `images` has it
FOLDER/<vm>/domain.xml             that of libvirt, where the VM came from there
FOLDER/<vm>/<disk>.<format>        disks that were saved whole
FOLDER/<vm>/<component>/           files of a component, under their paths in the guest; or <component>.tar
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.components.base import RestoreContext
from vmkeep.components.export import export_tar
from vmkeep.components.saved import has_files, restore_saved
from vmkeep.errors import InputError, IntegrityError, NotFoundError, UnsupportedError
from vmkeep.hypervisors import definition as definitions
from vmkeep.hypervisors.images import ImagesHypervisor
from vmkeep.operations.extract import matching
from vmkeep.repository.layout import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmkeep.repository import Point, Repository, SavedComponent

NATIVE: Final = "domain.xml"
"""What libvirt said of a VM, for `virsh define` once its disks are where it names them."""


@dataclass(frozen=True, slots=True)
class Rescued:
    """What came out of one recovery point."""

    point: Point
    folder: Path
    """Holds all of the VM."""
    disks: tuple[Path, ...]
    files: dict[str, Path]
    """Folders or archives by component."""
    failed: dict[str, str]
    """Why a component could not be restored, by its name; the others are complete."""


@dataclass(frozen=True, slots=True)
class How:
    """How files are restored."""

    archives: bool = False
    """As tar archives: needs no root, and keeps owners all the same."""
    owners: bool = True
    """False: files become ours, which needs no root."""
    overwrite: bool = False


def newest(repository: Repository, vm: str, damaged: Callable[[str], None], *, part: str = "") -> Point:
    """Return the newest complete recovery point of a VM, or else the newest.

    Args:
        damaged: told of each point that cannot be read, which is passed over.
        part: a component, or a kind of them, that it has to have.

    Raises:
        NotFoundError: there is none that can be read.
    """
    points = repository.points(vm, damaged=lambda _, error: damaged(str(error)))
    if not points:
        raise NotFoundError(f"{repository.store.url} has no recovery point of {vm} that can be read")
    if part:
        points = [point for point in points if matching(point.components, [part])] or points
    return next((point for point in reversed(points) if point.complete), points[-1])


def vms(repository: Repository) -> Sequence[str]:
    """Return the VMs of which there are recovery points."""
    return sorted({info.vm for info in repository.list_points()})


def rescue(
    repository: Repository,
    points: Sequence[Point],
    folder: Path,
    how: How,
    told: Callable[[str], None] = lambda _component: None,
) -> list[Rescued]:
    """Restore all of recovery points, one of a VM, into *folder*; what is damaged keeps no other away.

    Args:
        told: called with `vm/component` before each is restored.

    Raises:
        InputError: there is something of a VM already, and overwriting was not asked for.
        NotFoundError: a point was forgotten meanwhile.
        AccessError: owners are to be restored, and we are not root.
    """
    with repository.reading(*points):
        return [_rescue(repository, point, folder, how, told) for point in points]


def _rescue(
    repository: Repository, point: Point, folder: Path, how: How, told: Callable[[str], None]
) -> Rescued:
    own = folder / check_name("VM", point.vm)
    if not how.overwrite and own.exists() and any(own.iterdir()):
        raise InputError(f"{own} is not empty: say --overwrite, or another folder")
    hypervisor = ImagesHypervisor("rescue", folder)
    native = point.definition.lstrip().startswith("<")
    definition = definitions.stand_in(point.vm).to_json() if native else point.definition
    hypervisor.create(point.vm, definition, overwrite=how.overwrite)
    if native:
        (own / NATIVE).touch(mode=0o600)  # it may hold the password of a console
        (own / NATIVE).write_text(point.definition, encoding="utf-8")
    files: dict[str, Path] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        context = RestoreContext(point.vm, "", hypervisor, repository, Path(scratch), owners=how.owners)
        for name, saved in point.components.items():
            told(f"{point.vm}/{name}")
            target = own / check_name("component", name) if has_files(saved) else None
            try:
                files |= _restore(dataclasses.replace(context, component=name, folder=target), saved, how)
            except (IntegrityError, UnsupportedError) as error:
                failed[name] = str(error)
    images = tuple(image.path for image in hypervisor.images(point.vm))
    return Rescued(point, own, images, files, failed)


def _restore(context: RestoreContext, saved: SavedComponent, how: How) -> dict[str, Path]:
    """Restore one component, and return where its files are."""
    if context.folder is None:
        restore_saved(context, saved)
        return {}
    if not how.archives:
        restore_saved(context, saved)
        return {context.component: context.folder}
    archive = context.folder.with_name(f"{context.component}.tar")
    unfinished = archive.with_name(f".{archive.name}.restoring")
    try:
        with unfinished.open("wb") as file:
            export_tar(context.reader, saved, file)
        unfinished.replace(archive)
    finally:
        unfinished.unlink(missing_ok=True)
    return {context.component: archive}
