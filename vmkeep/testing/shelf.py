"""A folder of powered-off VMs and a place to save them to, for tests of components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmkeep.components.base import RestoreContext, SaveContext
from vmkeep.components.guest import GuestFiles
from vmkeep.components.open import open_component
from vmkeep.hypervisors.images import ImagesHypervisor
from vmkeep.testing.chunks import MemoryChunks
from vmkeep.testing.guests import Volume, build_disk, describe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmkeep.fleet.model import VM
    from vmkeep.repository.manifest import SavedComponent


class Shelf:
    """VMs of the `images` driver in a folder, and a chunk store in memory."""

    def __init__(self, folder: Path) -> None:
        """Use *folder*, which is empty."""
        self.folder = folder
        self.hypervisor = ImagesHypervisor("shelf", folder / "vms")
        self.chunks = MemoryChunks()
        self.scratch = folder / "scratch"
        self.scratch.mkdir()

    def image(self, name: str, *, disk: str = "root", image_format: str = "raw") -> Path:
        """Return the path of a disk's image."""
        return self.folder / "vms" / name / f"{disk}.{image_format}"

    def add(
        self, name: str, tree: Path, *, image_format: str = "raw", others: Sequence[tuple[str, Volume]] = ()
    ) -> None:
        """Make a VM whose disk `root` holds *tree*, and *others*."""
        self.image(name).parent.mkdir(parents=True)
        for disk, volume in (("root", Volume(tree, label="root")), *others):
            path = self.image(name, disk=disk, image_format=image_format)
            build_disk(path, [volume], format=image_format)

    def save(self, name: str, component: str, vm: VM) -> SavedComponent:
        """Take a snapshot, and save one component from it."""
        machine = self.hypervisor.snapshot("g", {name: vm}).machines[name]
        with GuestFiles(self.hypervisor, machine) as files:
            context = SaveContext(
                name, vm, component, self.hypervisor, machine, self.chunks, files, self.scratch
            )
            return open_component(name, vm, component).save(context)

    def restore(self, name: str, saved: SavedComponent, vm: VM, **how: Any) -> None:
        """Restore a component into a VM, which gets a definition, or into a folder."""
        if how.get("folder") is None:
            self.hypervisor.configure(name, vm, apply=True)
        context = RestoreContext(name, saved.name, self.hypervisor, self.chunks, self.scratch, **how)
        open_component(name, vm, saved.name).restore(context, saved)

    def describe(self, name: str, path: str, vm: VM) -> dict[bytes, tuple[object, ...]]:
        """Return all that is known of the files below *path* in a VM."""
        machine = self.hypervisor.snapshot("g", {name: vm}).machines[name]
        with GuestFiles(self.hypervisor, machine) as files:
            return describe(files.open().root / path)
