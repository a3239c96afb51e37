"""Components that are trees of files: what `filesystems`, `applications` and `databases` share."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from vmkeep.components import guest
from vmkeep.components.tree_restore import Choice, restore_tree
from vmkeep.components.tree_save import SavedTree, save_tree
from vmkeep.disks.file_tree import FileTree
from vmkeep.errors import InputError, NotFoundError, SourceError
from vmkeep.repository.manifest import SavedComponent, Stats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from vmkeep.components.base import RestoreContext, SaveContext
    from vmkeep.repository.manifest import StreamRef

CONTENT = "content"
CATALOGUE = "catalogue"


def save_paths(  # noqa: PLR0913  (each is a keyword, and none belongs to another)
    context: SaveContext,
    paths: Sequence[bytes],
    *,
    facts: Mapping[str, str],
    exclude: Sequence[str] = (),
    contents: Mapping[tuple[bytes, ...], Path] | None = None,
    streams: Mapping[str, StreamRef] | None = None,
    stats: Stats = Stats(),  # noqa: B008  (frozen)
) -> SavedComponent:
    """Save *paths* of the guest, and describe them.

    Args:
        contents: Files whose data is taken from these files of this host, by real path.
        streams: Further streams of the component, with their *stats*.
    """
    saved: SavedTree = save_tree(
        context.files.open(),
        paths,
        exclude=exclude,
        contents=contents,
        writer=context.writer,
        scratch=context.scratch,
        what=f"VM {context.name}: {context.component}",
        progress=context.progress,
    )
    counted = {
        "paths": "\n".join(saved.real_paths),
        "entries": str(saved.counts.entries),
        "files": str(saved.counts.files),
        "bytes": str(saved.counts.size),
    }
    return SavedComponent(
        context.component,
        streams={CONTENT: saved.content, CATALOGUE: saved.catalogue, **(streams or {})},
        facts={**counted, **facts},
        stats=saved.stats + stats,
    )


@contextlib.contextmanager
def target(context: RestoreContext) -> Iterator[FileTree]:
    """Open where files are restored to: the VM's images, all or nothing, or a plain folder."""
    if context.folder is None:
        with guest.writable(context.hypervisor, context.name) as tree:
            yield tree
        return
    yield plain_folder(context.folder)


def plain_folder(folder: Path) -> FileTree:
    """Open a folder of this host to restore files into; make it if it is missing.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from error
    return FileTree(folder)


def restore_paths(context: RestoreContext, saved: SavedComponent, tree: FileTree, *, exact: bool) -> None:
    """Write the chosen files of the component into *tree*.

    Args:
        exact: What `RestoreContext.exact` means when it was not said.
    """
    missing = {CONTENT, CATALOGUE} - set(saved.streams)
    if missing:
        raise NotFoundError(f"{context.component}: the recovery point lacks its {', '.join(sorted(missing))}")
    chosen = tuple(tuple(n for n in os.fsencode(path).split(b"/") if n) for path in context.paths)
    restore_tree(
        context.reader,
        content=saved.streams[CONTENT],
        catalogue_ref=saved.streams[CATALOGUE],
        into=tree,
        choice=Choice(
            paths=chosen or ((),),
            exact=exact if context.exact is None else context.exact,
            owners=context.owners,
            in_place=context.folder is None,
        ),
        what=f"{context.name}: {context.component}" if context.folder is None else str(context.folder),
        progress=context.progress,
    )


def text_stream(context: SaveContext, lines: Sequence[str]) -> tuple[StreamRef, Stats]:
    """Save lines of text as a stream."""
    return context.writer.save_stream([("\n".join(lines) + "\n").encode()] if lines else [])


def require(context: SaveContext, path: bytes) -> tuple[bytes, ...]:
    """Return the real names of a path that must be there.

    Raises:
        SourceError: it is not.
    """
    try:
        return context.files.open().resolve(path).names
    except NotFoundError as error:
        raise SourceError(f"VM {context.name}: {context.component}: {error}") from error
