"""Changes to a folder of images that happen all or not at all, whenever the process is killed.

    1  prepare new files and overlays beside the old images      killed here: nothing has changed
    2  write the journal                                          the decision
    3  hide, commit, rename, remove what it says                  killed here: the next call continues
    4  remove the journal

Every action can be repeated, so continuing is simply doing all of it again. While an overlay is
committed its image is half old and half new: it is renamed to a hidden name for that time, so that
nobody can start a virtual machine from it, also after a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

from vmkeep.disks import fingerprint, locking, qemu_img
from vmkeep.errors import IntegrityError, SourceChangedError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from vmkeep.disks.exports import ExportedDisk

NAME: Final = ".vmkeep-journal.json"
_WAIT_S: Final = 600.0
_POLL_S: Final = 0.05


class Changes:
    """The right to change a folder, held by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def commit(self, disks: Sequence[ExportedDisk], fingerprints: Sequence[str]) -> None:
        """Write the overlays of *disks* into their images, all or none.

        The overlays lie in this folder and are complete; nobody uses them or the images any more.

        Args:
            fingerprints: What the images were when the overlays were made.

        Raises:
            SourceChangedError: an image has changed since; nothing was written.
        """
        commits = [
            {
                "overlay": disk.overlay.name,
                "image": disk.image.path.name,
                "format": disk.image.format,
                "files": [str(file) for file in disk.files],
                "fingerprint": mark,
            }
            for disk, mark in zip(disks, fingerprints, strict=True)
        ]
        self._carry_out({"commits": commits, "renames": {}, "removals": []})

    def replace(self, renames: Mapping[str, str], *, removals: Sequence[str] = ()) -> None:
        """Give files new names, replacing what has them, then remove others; all or none.

        Args:
            renames: New name by old name, inside the folder; the files are complete and flushed.
        """
        self._carry_out({"commits": [], "renames": dict(renames), "removals": list(removals)})

    def _carry_out(self, plan: Mapping[str, Any]) -> None:
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
    _commit_all(folder, commits)
    for old, new in renames.items():
        with contextlib.suppress(FileNotFoundError):  # it was renamed already
            (folder / old).replace(folder / new)
    for name in removals:
        (folder / name).unlink(missing_ok=True)
    flush_folder(folder)
    journal.unlink()
    flush_folder(folder)


def _commit_all(folder: Path, commits: Sequence[Mapping[str, Any]]) -> None:
    """Hide all images, then commit each and show it again once its overlay is gone."""
    if not any(_hidden(folder, item).exists() for item in commits):
        _check_unchanged(folder, [item for item in commits if (folder / item["overlay"]).exists()], commits)
    for item in commits:
        if (folder / item["overlay"]).exists() and (folder / item["image"]).exists():
            (folder / item["image"]).replace(_hidden(folder, item))
    flush_folder(folder)
    for item in commits:
        overlay, hidden = folder / item["overlay"], _hidden(folder, item)
        if overlay.exists():
            qemu_img.rebase(overlay, hidden, item["format"])
            qemu_img.commit(overlay)
            # From here on this image is done: a repetition finds no overlay and only renames.
            overlay.unlink()
            flush_folder(folder)
        if hidden.exists():
            hidden.replace(folder / item["image"])


def _check_unchanged(
    folder: Path, waiting: Sequence[Mapping[str, Any]], commits: Sequence[Mapping[str, Any]]
) -> None:
    """Give the changes up if a virtual machine ran between the decision and now.

    Only before the first image was hidden: nothing was written, and the machine's own changes win.
    """
    try:
        if len(waiting) == len(commits):
            for item in waiting:
                image = folder / item["image"]
                with locking.locked(image, what=str(image)):
                    files = [folder / name for name in item["files"]]
                    fingerprint.check(files, item["fingerprint"], what=str(image))
    except SourceChangedError as error:
        for item in commits:
            (folder / item["overlay"]).unlink(missing_ok=True)
        (folder / NAME).unlink()
        raise SourceChangedError(f"{error}; the restore into it was given up and changed nothing") from error


def _hidden(folder: Path, item: Mapping[str, Any]) -> Path:
    return folder / f".{item['image']}.committing"


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
