"""SQLite: a database file of a powered-off VM, made clean and proved whole while it is saved."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.components import files
from vmkeep.disks.file_tree import show
from vmkeep.errors import InputError, NotFoundError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.components.base import RestoreContext, SaveContext
    from vmkeep.disks.file_tree import FileTree
    from vmkeep.fleet.model import DatabaseComponent
    from vmkeep.repository.manifest import SavedComponent

# What SQLite keeps beside a database while it is open, or after a crash. See: sqlite.org/tempfiles.html.
_BESIDE: Final = (b"-wal", b"-journal", b"-shm")


class Sqlite:
    """A component of the kind `databases` with the engine `sqlite`."""

    def __init__(self, config: DatabaseComponent) -> None:
        self._config = config

    def save(self, context: SaveContext) -> SavedComponent:
        """Save the database as one clean file, with all committed transactions in it.

        Raises:
            SourceError: it is not there, or fails its integrity check.
        """
        if self._config.path is None:
            raise InputError(f"VM {context.name}: {context.component}: say the path of the SQLite file")
        path = os.fsencode(self._config.path)
        names = files.require(context, path)
        what = f"VM {context.name}: {context.component}: {show(names)}"
        with clean_copy(context.files.open(), names, scratch=context.scratch, what=what) as copy:
            facts = {"engine": "sqlite", "tables": str(_count_tables(copy)), "size": str(copy.stat().st_size)}
            return files.save_paths(context, [path], contents={names: copy}, facts=facts)

    def restore(self, context: RestoreContext, saved: SavedComponent) -> None:
        """Write the file, and remove a write-ahead log that would belong to another state of it."""
        with files.target(context) as tree:
            files.restore_paths(context, saved, tree, exact=False)
            remove_beside(saved, tree)


def remove_beside(saved: SavedComponent, tree: FileTree) -> None:
    """Remove what lies beside a restored database, and would belong to another state of it."""
    for path in saved.facts.get("paths", "").splitlines():
        _remove_beside(tree, os.fsencode(path))


@contextlib.contextmanager
def clean_copy(tree: FileTree, names: tuple[bytes, ...], *, scratch: Path, what: str) -> Iterator[Path]:
    """Make a clean, checked copy of a guest's database, in *scratch* for the length of the block.

    Raises:
        SourceError: it is no SQLite database, or damaged.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="sqlite-") as folder:
        work, clean = Path(folder) / "work.db", Path(folder) / "clean.db"
        # SQLite finds the log by the database's name, and replays it as the guest's own would.
        for suffix in (b"", *_BESIDE[:2]):
            with contextlib.suppress(*([NotFoundError] if suffix else [])):
                source = b"/" + b"/".join(names) + suffix
                with tree.open_file(source) as file, Path(f"{work}{suffix.decode()}").open("wb") as copy:
                    shutil.copyfileobj(file, copy)
        try:
            with contextlib.closing(sqlite3.connect(work)) as source_db:
                found = [row[0] for row in source_db.execute("PRAGMA integrity_check(5)")]
                if found != ["ok"]:
                    raise SourceError(f"{what}: integrity check: {'; '.join(found)}")
                with contextlib.closing(sqlite3.connect(clean)) as clean_db:
                    source_db.backup(clean_db)
        except sqlite3.Error as error:
            raise SourceError(f"{what}: SQLite cannot read it: {error}") from error
        yield clean


def _count_tables(database: Path) -> int:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return int(
            connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
        )


def _remove_beside(tree: FileTree, path: bytes) -> None:
    names = tuple(name for name in path.split(b"/") if name)
    try:
        folder = tree.open_folder(names[:-1])
    except NotFoundError:
        return
    try:
        for suffix in _BESIDE:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(names[-1] + suffix, dir_fd=folder)
    finally:
        os.close(folder)
