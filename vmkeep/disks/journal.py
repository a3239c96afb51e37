"""Changes to a folder of images that happen all or not at all, whenever the process is killed.

    1  prepare new files and overlays beside the old images      killed here: nothing has changed
    2  write the journal                                          the decision
    3  rename, commit, remove what it says                        killed here: the next call continues
    4  remove the journal

Every action can be repeated, so continuing is simply doing all of it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import TYPE_CHECKING, Final

from vmkeep.disks import qemu_img
from vmkeep.errors import IntegrityError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

NAME: Final = ".vmkeep-journal.json"
_WAIT_S: Final = 600.0
_POLL_S: Final = 0.05


class Changes:
    """The right to change a folder, held by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def carry_out(
        self,
        *,
        commits: Sequence[str] = (),
        renames: Mapping[str, str] | None = None,
        removals: Sequence[str] = (),
    ) -> None:
        """Do all of it; names are inside the folder, and what they name is complete and flushed.

        Args:
            commits: Overlays (qcow2) to be written into their backing files, then removed.
            renames: New name by old name; what has the new name is replaced.
            removals: Files to remove afterwards.
        """
        plan = {"commits": list(commits), "renames": dict(renames or {}), "removals": list(removals)}
        write_file(self._folder / NAME, json.dumps(plan))
        _continue(self._folder)


@contextlib.contextmanager
def exclusive(folder: Path, *, wait_s: float = _WAIT_S) -> Iterator[Changes]:
    """Wait for the right to change *folder*; first finishes what a killed process had decided.

    Raises:
        TemporaryError: another process still has it after *wait_s* seconds.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + wait_s
        while not _try_lock(fd):
            if time.monotonic() > deadline:
                raise TemporaryError(
                    f"{folder} is being changed by another vmkeep: try again when it has ended"
                )
            time.sleep(_POLL_S)
        _continue(folder)
        yield Changes(folder)
    finally:
        os.close(fd)


def finish(folder: Path) -> None:
    """Finish what a killed process had decided for *folder*, if anything."""
    if (folder / NAME).exists():
        with exclusive(folder):
            pass


def write_file(path: Path, text: str) -> None:
    """Replace a file at once and durably: readers see all of the old or all of the new."""
    new = path.with_name(f".{path.name.lstrip('.')}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make renames and removals in *folder* durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _continue(folder: Path) -> None:
    journal = folder / NAME
    try:
        plan = json.loads(journal.read_text(encoding="utf-8"))
        commits, renames, removals = plan["commits"], plan["renames"], plan["removals"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{journal} is damaged: look at the files beside it before you remove it"
        ) from error
    for overlay in commits:
        if (folder / overlay).exists():
            qemu_img.commit(folder / overlay)
    for old, new in renames.items():
        with contextlib.suppress(FileNotFoundError):  # it was renamed already
            (folder / old).replace(folder / new)
    # Overlays go last: as long as one is there, its commit can be repeated.
    for name in (*commits, *removals):
        (folder / name).unlink(missing_ok=True)
    flush_folder(folder)
    journal.unlink()
    flush_folder(folder)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
