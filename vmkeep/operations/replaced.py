"""An instant restore in the place of another: that one keeps what it needs until the new one is in its place.

<serving>/replaced/   note, pin and point of the earlier one; its server does not run meanwhile

Whether the VM lies on the new overlays or on the old ones, they say themselves: see `Serving.export`.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vmkeep.errors import NotFoundError, VmkeepError
from vmkeep.operations import repositories, served_point, serving

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.operations.serving import Serving

_FOLDER: Final = "replaced"
_FILES: Final = (*served_point.FILES, serving.NOTE)
"""The note last: it makes the others count."""


def set_aside(new: Serving) -> None:
    """End the server of an earlier restore that *new* is to replace; it can be put back."""
    folder = new.folder
    try:
        old = serving.read(folder)
    except NotFoundError:
        return
    if (old.run, old.session) == (new.run, new.session):
        return  # another try
    old = settle(old)
    if not old.in_place:
        serving.let_go(old)
        return
    serving.end(folder)
    beginning = folder / f".{_FOLDER}"
    for left in (beginning, folder / _FOLDER):
        shutil.rmtree(left, ignore_errors=True)
    beginning.mkdir(mode=0o700)
    for name in _FILES:
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(folder / name, beginning / name)
    beginning.rename(folder / _FOLDER)
    for name in served_point.FILES:
        (folder / name).unlink(missing_ok=True)


def is_there(folder: Path) -> bool:
    """Tell whether an earlier restore was set aside."""
    return (folder / _FOLDER / serving.NOTE).exists()


def drop(what: Serving) -> None:
    """Let go of the restore that *what* has replaced; a second call does nothing."""
    aside = what.folder / _FOLDER
    with (
        contextlib.suppress(VmkeepError),
        repositories.open_repository(serving.read(aside).file) as repository,
    ):
        served_point.let_go(repository, aside)
    shutil.rmtree(aside, ignore_errors=True)


def settle(what: Serving) -> Serving:
    """Return the restore that the VM is of: *what*, or the one that was set aside for it, which is put back.

    Nobody carries out *what* any more, or it has failed.
    """
    if what.in_place or not is_there(what.folder):
        return what
    lies_on = {one.export for one in what.streams().behind(what.target)}
    if lies_on & {what.export(disk) for disk in what.disks}:
        what = replace(what, in_place=True)
        serving.write(what)
        drop(what)
        return what
    serving.end(what.folder)
    with contextlib.suppress(VmkeepError), repositories.open_repository(what.file) as repository:
        served_point.let_go(repository, what.folder)
    for name in _FILES:
        with contextlib.suppress(FileNotFoundError):
            (what.folder / _FOLDER / name).replace(what.folder / name)
    shutil.rmtree(what.folder / _FOLDER, ignore_errors=True)
    return serving.read(what.folder)


def abandon(folder: Path, run: str) -> None:
    """Let a server go that a run started, and on whose disks it put no VM; what it was to replace is back."""
    try:
        what = serving.read(folder)
    except NotFoundError:
        return
    if what.run != run or what.in_place:
        return
    if is_there(folder):
        settle(what)
    elif not what.streams().behind(what.target):
        serving.let_go(what)
