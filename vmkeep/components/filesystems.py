"""File systems: a whole data disk, or the files below a path."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmkeep.components import files
from vmkeep.components.whole_disks import restore_disks, save_disks

if TYPE_CHECKING:
    from vmkeep.components.base import RestoreContext, SaveContext
    from vmkeep.fleet.model import FilesystemComponent
    from vmkeep.repository.manifest import SavedComponent


class FileSystem:
    """A component of the kind `filesystems`."""

    def __init__(self, config: FilesystemComponent) -> None:
        self._config = config

    def save(self, context: SaveContext) -> SavedComponent:
        """Save the disk, or the files."""
        if self._config.path is None:
            return save_disks(context, [self._config.disk] if self._config.disk else [], {})
        path = os.fsencode(self._config.path)
        files.require(context, path)
        return files.save_paths(context, [path], exclude=self._config.exclude, facts={})

    def restore(self, context: RestoreContext, saved: SavedComponent) -> None:
        """Write the disk, or the files; others that are there stay, unless asked for exactly."""
        if saved.disks:
            restore_disks(context, saved)
            return
        with files.target(context) as tree:
            files.restore_paths(context, saved, tree, exact=False)
