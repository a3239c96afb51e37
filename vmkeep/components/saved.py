"""Restore a component by what was saved of it, without the fleet file that declared it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmkeep.components import files
from vmkeep.components.databases import sqlite
from vmkeep.components.tree_restore import Choice, restore_tree
from vmkeep.components.whole_disks import restore_disks
from vmkeep.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vmkeep.components.base import RestoreContext, StreamReader
    from vmkeep.disks.file_tree import FileTree
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
            _tidy(saved, tree)
    else:
        raise UnsupportedError(
            f"{context.component} is neither disks nor files ({', '.join(saved.streams) or 'nothing'}): "
            "use the vmkeep that saved it, or a newer one"
        )


def restore_files(  # noqa: PLR0913  (each is a keyword, and none belongs to another)
    reader: StreamReader,
    saved: SavedComponent,
    folder: Path,
    *,
    paths: Sequence[str],
    owners: bool,
    progress: Callable[[int], None],
) -> None:
    """Write files into a folder of this host; nothing else in it is touched.

    Args:
        paths: only these files and folders, and what is below them; none means all.
    """
    chosen = tuple(tuple(name for name in os.fsencode(path).split(b"/") if name) for path in paths)
    tree = files.plain_folder(folder)
    restore_tree(
        reader,
        content=saved.streams[files.CONTENT],
        catalogue_ref=saved.streams[files.CATALOGUE],
        into=tree,
        choice=Choice(paths=chosen or ((),), owners=owners),
        what=str(folder),
        progress=progress,
    )
    _tidy(saved, tree)


def _tidy(saved: SavedComponent, tree: FileTree) -> None:
    """Remove what would belong to another state of a database."""
    if saved.facts.get("engine") == "sqlite":
        sqlite.remove_beside(saved, tree)
