"""A file that a command writes: in the end it is there completely, or nothing of it is."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from vmkeep.errors import AccessError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[IO[bytes]]:
    """Yield a file that becomes *path* when the block ends well; until then, what is there stays.

    What is no file, such as a pipe, is written into as it is.

    Raises:
        InputError: it exists, and overwriting was not asked for; or it is a folder.
        AccessError: it cannot be written.
    """
    target = path.resolve()
    if target.is_dir():
        raise InputError(f"{path} is a folder: say the file's name, too")
    if target.exists() and not overwrite:
        raise InputError(f"{path} exists: say --overwrite, or another name")
    special = target.exists() and not target.is_file()
    new = target if special else target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            if target.is_file():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
            yield file
            file.flush()
            if not special:
                os.fsync(file.fileno())
                new.replace(target)
    except OSError as error:
        raise AccessError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if not special:
            new.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Make a file, and the folder it is in.

    Raises:
        InputError, AccessError: see `new_file`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AccessError(f"cannot write {path}: {error.strerror}") from error
    with new_file(path) as file:
        file.write(text.encode())
