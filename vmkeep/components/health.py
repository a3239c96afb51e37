"""The health check `image`: a powered-off VM could start from its images, and its databases are clean."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmkeep.components.databases import postgresql, sqlite
from vmkeep.components.guest import GuestFiles
from vmkeep.disks import exports, mounts, qemu_img, scratch
from vmkeep.disks.file_tree import show
from vmkeep.errors import SourceError, VmkeepError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmkeep.disks.device import Image
    from vmkeep.disks.file_tree import FileTree
    from vmkeep.fleet.model import VM, DatabaseComponent
    from vmkeep.hypervisors.base import Hypervisor


def check_images(hypervisor: Hypervisor, name: str, vm: VM) -> tuple[str, ...]:
    """Check a powered-off VM; return what was found to be right, one sentence each.

    Raises:
        SourceError: something is wrong; the message lists all of it.
    """
    machine = hypervisor.snapshot("health", {name: vm}).machines[name]
    right: list[str] = []
    wrong: list[str] = []
    for image in hypervisor.images(name):
        with _collected(wrong):
            right += _check_disk(name, image)
    with _collected(wrong), scratch.scratch_folder() as folder, GuestFiles(hypervisor, machine) as files:
        for key, config in vm.components.databases.items():
            with _collected(wrong):
                right.append(_check_database(f"VM {name}: databases.{key}", config, files.open(), folder))
    if wrong:
        raise SourceError(f"VM {name} is not healthy: {'; '.join(wrong)}")
    return tuple(right)


class _collected:  # noqa: N801  (reads as a function)
    """Note an error instead of raising it, so that all problems are told at once."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if isinstance(error, VmkeepError):
            self._problems.append(str(error))
        return isinstance(error, VmkeepError)


def _check_disk(name: str, image: Image) -> Iterator[str]:
    """Check the image, its partition table, and each ext file system, as it would be after a start."""
    what = f"VM {name}: disk {image.disk}"
    if image.format != "raw":
        qemu_img.check(image.path, image.format, what=what)
        yield f"{what}: the {image.format} image is consistent"
    with (
        scratch.scratch_folder() as folder,
        exports.exported([(image, folder / "overlay.qcow2")], folder=folder, what=f"VM {name}") as (disk,),
    ):
        for volume in disk.volumes:
            inside = volume.partition.filesystem
            where = f"{what}, partition {volume.partition.number}"
            if inside is None or not inside.is_ext:
                yield f"{where}: {inside.kind if inside else 'nothing known'}"
                continue
            if inside.dirty:
                mounts.replay_journal(volume)
            mounts.check_ext(volume, what=where)
            yield f"{where}: {inside.kind} is clean"


def _check_database(what: str, config: DatabaseComponent, tree: FileTree, folder: Path) -> str:
    path = os.fsencode(config.path) if config.path else None
    if config.engine == "postgresql":
        cluster = postgresql.read_cluster(tree, path or postgresql.find_cluster(tree, what), what)
        return f"{what}: PostgreSQL {cluster.version} in {show(cluster.directory)} was stopped cleanly"
    if config.engine == "sqlite" and path is not None:
        with sqlite.clean_copy(tree, tree.resolve(path).names, scratch=folder, what=what):
            return f"{what}: SQLite is whole"
    raise SourceError(f"{what}: engine {config.engine} cannot be checked while the VM is powered off")
