"""Files inside of the fleet's disks, read and changed with the machines powered off."""

from __future__ import annotations

import filecmp
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vmkeep import fleet as fleets
from vmkeep.components import guest
from vmkeep.hypervisors.open import open_hypervisor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmkeep.disks.device import Image
    from vmkeep.disks.file_tree import FileTree
    from vmkeep.fleet.model import VM
    from vmkeep.hypervisors.base import Hypervisor


class Guest:
    """A machine of the fleet, or a restored copy of one under another name."""

    def __init__(self, fleet_file: Path, vm: str, *, name: str | None = None) -> None:
        """Remember which; nothing is opened yet."""
        file = fleets.load(fleet_file)
        self.name = name or vm
        self._vm: VM = file.fleet.vms[vm]
        config = file.fleet.hypervisors[self._vm.hypervisor]
        self._hypervisor: Hypervisor = open_hypervisor(self._vm.hypervisor, config, fleet_file.parent)

    def images(self) -> Sequence[Image]:
        """Return its disks."""
        return self._hypervisor.images(self.name)

    @contextmanager
    def reading(self) -> Iterator[FileTree]:
        """Open its files; the disks do not change."""
        machine = self._hypervisor.snapshot("demo", {self.name: self._vm}).machines[self.name]
        with guest.GuestFiles(self._hypervisor, machine) as files:
            yield files.open()

    @contextmanager
    def writing(self) -> Iterator[FileTree]:
        """Open its files to change them; when the block ends, the disks have all changes."""
        with guest.writable(self._hypervisor, self.name) as tree:
            yield tree


@contextmanager
def folder(tree: FileTree, path: str) -> Iterator[Path]:
    """Give a path of this host to a folder of the guest, whichever disk it is on."""
    fd = tree.open_folder(tree.resolve(os.fsencode(path)).names)
    try:
        yield Path(f"/proc/self/fd/{fd}").readlink()
    finally:
        os.close(fd)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder with all its times, permissions and, for root, owners."""

    def copy(one: str, other: str) -> str:
        shutil.copy2(one, other, follow_symlinks=False)
        _own(Path(one), Path(other))
        return other

    shutil.copytree(source, target, symlinks=True, copy_function=copy)
    for one in [source, *(path for path in source.rglob("*") if path.is_dir() and not path.is_symlink())]:
        _own(one, target / one.relative_to(source))


def mirror(source: Path, target: Path) -> int:
    """Make *target* what *source* is, writing only files that differ; return how many."""
    written = 0
    wanted = set()
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        wanted.add(relative)
        other = target / relative
        if path.is_dir():
            if not other.is_dir():
                other.mkdir()
                shutil.copystat(path, other)
                _own(path, other)
        elif not other.is_file() or not filecmp.cmp(path, other, shallow=False):
            shutil.copy2(path, other)
            _own(path, other)
            written += 1
    for other in sorted(target.rglob("*"), reverse=True):
        if other.relative_to(target) not in wanted:
            if other.is_dir():
                other.rmdir()
            else:
                other.unlink()
    return written


def _own(source: Path, target: Path) -> None:
    if os.geteuid() == 0:
        status = source.lstat()
        os.lchown(target, status.st_uid, status.st_gid)
