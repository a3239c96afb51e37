"""The recovery points of a run: kept until it ends, whoever forgets them meanwhile.

<run>/pin           who reads them, as the repository calls it, and whether that was checked
<run>/points/<vm>   the point as it lies in the store, encrypted
"""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import TYPE_CHECKING

from vmkeep.errors import VmkeepError
from vmkeep.operations.run import POINTS_FOLDER, Run
from vmkeep.operations.taken import write_whole
from vmkeep.repository.pins import new_reader

if TYPE_CHECKING:
    from pathlib import Path

_PIN = "pin"


def hold(run: Run) -> None:
    """Keep what the run reads from being collected; a second call, by any process, goes on with it.

    Raises:
        NotFoundError: a point is forgotten already.
        TemporaryError: the store is away.
    """
    if not run.chosen:
        return
    reader, checked = _noted(run.folder)
    if checked and run.repository.pinned(reader):
        return
    _note(run.folder, reader, checked=False)
    folder = run.folder / POINTS_FOLDER
    folder.mkdir(exist_ok=True)
    for vm, body in run.repository.pin(run.chosen, reader).items():
        write_whole(folder / vm, body)
    _note(run.folder, reader, checked=True)


def let_go(run: Run) -> None:
    """Let what the run has read be collected; a second call does nothing."""
    if (run.folder / _PIN).exists():
        with contextlib.suppress(VmkeepError):  # then a collector takes us for dead, in some days
            run.repository.unpin(_noted(run.folder)[0])
        (run.folder / _PIN).unlink(missing_ok=True)
        shutil.rmtree(run.folder / POINTS_FOLDER, ignore_errors=True)


def drop(folder: Path) -> None:
    """Remove the folder of a run that is not continued any more, and let go of what it held."""
    if (folder / _PIN).exists():
        with contextlib.suppress(VmkeepError), Run.reopen(folder) as run:
            let_go(run)
    shutil.rmtree(folder, ignore_errors=True)


def _noted(folder: Path) -> tuple[str, bool]:
    """Return who reads, and whether no point was forgotten when that was published."""
    try:
        noted = json.loads((folder / _PIN).read_bytes())
    except FileNotFoundError:
        return new_reader(), False
    return str(noted["reader"]), bool(noted["checked"])


def _note(folder: Path, reader: str, *, checked: bool) -> None:
    write_whole(folder / _PIN, json.dumps({"reader": reader, "checked": checked}).encode())
