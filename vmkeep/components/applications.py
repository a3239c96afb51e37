"""Applications: their files and units, and what of the system they were installed on."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from vmkeep.components import files
from vmkeep.disks.file_tree import show
from vmkeep.errors import SourceError
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.components.base import RestoreContext, SaveContext
    from vmkeep.disks.file_tree import FileTree
    from vmkeep.fleet.model import ApplicationComponent
    from vmkeep.repository.manifest import SavedComponent

# Where systemd looks for units, the administrator's own first. See: systemd.unit(5), "Unit File Load Path".
_UNIT_FOLDERS: Final = (b"/etc/systemd/system", b"/usr/lib/systemd/system", b"/lib/systemd/system")
_DPKG: Final = b"/var/lib/dpkg"
_MOST: Final = 64 * MiB
_FIELD: Final = re.compile(rb"^(Package|Version|Architecture|Status): (.*)$", re.MULTILINE)
_RPM: Final = (b"/var/lib/rpm/rpmdb.sqlite", b"/usr/lib/sysimage/rpm/rpmdb.sqlite", b"/var/lib/rpm/Packages")


class Application:
    """A component of the kind `applications`."""

    def __init__(self, config: ApplicationComponent) -> None:
        self._config = config

    def save(self, context: SaveContext) -> SavedComponent:
        """Save its paths and unit files, with the list of packages and of enabled units."""
        tree = context.files.open()
        paths = [os.fsencode(path) for path in self._config.paths]
        real = [files.require(context, path) for path in paths]
        for unit in self._config.units:
            found = list(unit_files(tree, os.fsencode(unit)))
            if not found:
                raise SourceError(f"VM {context.name}: {context.component}: unit {unit} is not in the guest")
            paths += found
        packages = sorted(installed_packages(tree))
        ref, stats = files.text_stream(context, packages)
        facts = {
            "packages": f"{len(packages)} (dpkg)"
            if packages
            else "rpm"
            if any(map(tree.exists, _RPM))
            else "none",
            "installed_by": ", ".join(sorted(set(owners(tree, real)))) or "no package",
            "enabled_units": ", ".join(enabled_units(tree)),
            "units": ", ".join(self._config.units),
        }
        return files.save_paths(
            context, paths, exclude=self._config.exclude, facts=facts, streams={"packages": ref}, stats=stats
        )

    def restore(self, context: RestoreContext, saved: SavedComponent) -> None:
        """Write its files; others that are there stay, unless asked for exactly."""
        with files.target(context) as tree:
            files.restore_paths(context, saved, tree, exact=False)


def unit_files(tree: FileTree, unit: bytes) -> Iterator[bytes]:
    """Yield the files of a systemd unit: itself, its drop-ins, and the links that enable it."""
    for folder in _UNIT_FOLDERS:
        # /lib is a link to /usr/lib on most systems: the same file is saved once.
        for name in (unit, unit + b".d"):
            if tree.exists(folder + b"/" + name):
                yield folder + b"/" + name
    for wants in tree.names(_UNIT_FOLDERS[0]):
        link = _UNIT_FOLDERS[0] + b"/" + wants + b"/" + unit
        if wants.endswith((b".wants", b".requires")) and tree.exists(link):
            yield link


def enabled_units(tree: FileTree) -> list[str]:
    """Return the units that start by themselves."""
    found = set()
    for wants in tree.names(_UNIT_FOLDERS[0]):
        if wants.endswith((b".wants", b".requires")):
            found |= {os.fsdecode(name) for name in tree.names(_UNIT_FOLDERS[0] + b"/" + wants)}
    return sorted(found)


def installed_packages(tree: FileTree) -> Iterator[str]:
    """Yield name, version and architecture of the packages that dpkg has installed."""
    status = tree.read(_DPKG + b"/status", most=_MOST) or b""
    for paragraph in status.split(b"\n\n"):
        fields = {key: value.decode("utf-8", "replace") for key, value in _FIELD.findall(paragraph)}
        if fields.get(b"Status", "").endswith(" installed"):
            yield " ".join(fields.get(key, "-") for key in (b"Package", b"Version", b"Architecture"))


def owners(tree: FileTree, real: list[tuple[bytes, ...]]) -> Iterator[str]:
    """Yield the dpkg packages that brought one of the paths."""
    wanted = {os.fsencode(show(names)) for names in real}
    for name in tree.names(_DPKG + b"/info"):
        if name.endswith(b".list"):
            listed = tree.read(_DPKG + b"/info/" + name, most=_MOST) or b""
            if wanted & set(listed.split(b"\n")):
                yield os.fsdecode(name.removesuffix(b".list"))
