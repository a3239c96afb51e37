"""What a VM's own configuration says of disks that are being restored, and of a drill.

    vmkeep.storage.root = "vmfs1"                        where a disk that is not there yet is to be
    vmkeep.made         = ["[vmfs1] db1-x/db1-x.vmdk"]   the files that a restore put in place
    vmkeep.replaced     = ["[vmfs1] db1/db1.vmdk"]       not in place any more, and to be removed
    vmkeep.drill        = "vmkeep-drill-..."             the drill that it was made for
    vmkeep.maker        = "4711 ..."                     the process that made it, for that

vSphere changes a VM's devices and these in one call, and so decides at once which disks are in place:
whenever a restore is killed, the VM still names every file that is to be removed. Before that, new disks
belong to a VM that does nothing but hold them:

    vmkeep.holder       = {"vm": "db1", "disks": ["root"], "files": [], "maker": "4711 ..."}
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.hypervisors.vsphere.places import HOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DRILL: Final = "vmkeep.drill"
MAKER: Final = "vmkeep.maker"
_STORAGE: Final = "vmkeep.storage."
_MADE: Final = "vmkeep.made"
_REPLACED: Final = "vmkeep.replaced"


@dataclass(frozen=True, slots=True)
class Holder:
    """What a VM that holds new disks says of itself."""

    vm: str
    disks: tuple[str, ...]
    maker: str
    files: tuple[str, ...] = ()
    """Of disks that it let go, so that the VM can have them."""


def holder(extra: Mapping[str, str]) -> Holder | None:
    """Return what a VM holds disks for, if it is such a VM."""
    try:
        said = json.loads(extra.get(HOLDER, ""))
        return Holder(str(said["vm"]), tuple(said["disks"]), str(said["maker"]), tuple(said.get("files", ())))
    except (ValueError, KeyError, TypeError):
        return None


def note_holder(mark: Holder) -> dict[str, str]:
    """Return what marks a VM as one that only holds disks."""
    return {HOLDER: json.dumps(asdict(mark))}


def storage_of(extra: Mapping[str, str], disk: str) -> str:
    """Return the datastore that a disk is to be in; empty: none was said."""
    return extra.get(f"{_STORAGE}{disk}", "")


def note_storage(where: Mapping[str, str]) -> dict[str, str]:
    """Say in which datastore disks are to be; an empty one says it no more."""
    return {f"{_STORAGE}{disk}": store for disk, store in where.items()}


def made(extra: Mapping[str, str]) -> list[str]:
    """Return the files that restores put in place."""
    return _list(extra.get(_MADE, ""))


def note_made(files: Iterable[str]) -> dict[str, str]:
    """Say which files restores put in place."""
    return {_MADE: json.dumps([*files])}


def replaced(extra: Mapping[str, str]) -> list[str]:
    """Return the files that were replaced, and are to be removed."""
    return _list(extra.get(_REPLACED, ""))


def note_replaced(files: Iterable[str]) -> dict[str, str]:
    """Say which files were replaced; without any, none is to be removed any more."""
    listed = [*files]
    return {_REPLACED: json.dumps(listed) if listed else ""}


def _list(text: str) -> list[str]:
    try:
        return [str(one) for one in json.loads(text)]
    except (ValueError, TypeError):
        return []
