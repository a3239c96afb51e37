"""The recovery point that a server reads: kept from being collected for as long as it is served.

<serving>/pin     who reads it, as the repository calls it
<serving>/point   the point as it lies in the store, encrypted: its object may be removed meanwhile
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

from vmkeep.errors import NotFoundError
from vmkeep.operations.taken import write_whole
from vmkeep.repository import PointInfo, layout
from vmkeep.repository.pins import new_reader

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.operations.serving import Serving
    from vmkeep.repository import Point, Repository

_PIN: Final = "pin"
_POINT: Final = "point"
FILES: Final = (_PIN, _POINT)

_log = logging.getLogger("vmkeep.server")


def keep(repository: Repository, what: Serving) -> Point:
    """Keep the recovery point from being collected, and return it; a second call says that we still read."""
    folder = what.folder
    info = PointInfo(what.vm, what.session, layout.decision(what.vm, what.session), 0)
    with contextlib.suppress(FileNotFoundError):
        body = (folder / _POINT).read_bytes()
        if repository.renew((folder / _PIN).read_text()):
            return repository.load(info, body)
    reader = new_reader()
    write_whole(folder / _PIN, reader.encode())
    try:
        body = repository.pin({what.vm: what.session}, reader)[what.vm]
        write_whole(folder / _POINT, body)
    except NotFoundError as error:
        if not (folder / _POINT).exists():
            raise
        body = (folder / _POINT).read_bytes()
        _log.warning("%s; nobody held it for too long: what was deleted cannot be read", error)
    return repository.load(info, body)


def let_go(repository: Repository, folder: Path) -> None:
    """Let the recovery point be collected."""
    with contextlib.suppress(FileNotFoundError):
        repository.unpin((folder / _PIN).read_text())
