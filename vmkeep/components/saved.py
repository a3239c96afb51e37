"""Restore a component by what was saved of it, without the fleet file that declared it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.components import files
from vmkeep.components.whole_disks import restore_disks
from vmkeep.errors import UnsupportedError

if TYPE_CHECKING:
    from vmkeep.components.base import RestoreContext
    from vmkeep.repository.manifest import SavedComponent


def has_files(saved: SavedComponent) -> bool:
    """Tell whether the component was saved as files; otherwise as whole disks."""
    return files.CATALOGUE in saved.streams


def restore_saved(context: RestoreContext, saved: SavedComponent) -> None:
    """Write the disks into the VM, or the files to where the context says.

    Raises:
        UnsupportedError: it was saved in a way that this version does not know.
    """
    if saved.disks:
        restore_disks(context, saved)
    elif has_files(saved):
        with files.target(context) as tree:
            files.restore_paths(context, saved, tree, exact=False)
    else:
        raise UnsupportedError(
            f"{context.component} is neither disks nor files ({', '.join(saved.streams) or 'nothing'}): "
            "use the vmkeep that saved it, or a newer one"
        )
