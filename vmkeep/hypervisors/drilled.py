"""What every driver holds against the VMs of a drill, before it makes or removes one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.disks import maker
from vmkeep.errors import InputError
from vmkeep.hypervisors.base import Orphan

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


def is_named_by(name: str, drill: str) -> bool:
    """Tell whether a VM is called as that drill calls its VMs."""
    return bool(drill) and name.endswith(drill.removeprefix("vmkeep"))


def orphan(made: str, *, vm: str = "", drill: str = "", disks: tuple[str, ...] = ()) -> Iterator[Orphan]:
    """Yield what a process made, unless that still runs.

    Args:
        made: who made it, as `maker` says it; what does not say it is nobody's to take away.
    """
    if made and not maker.is_at_work(made):
        yield Orphan(vm, drill, disks, maker.is_gone(made), maker.described(made))


def require_copy(name: str, captured: str) -> None:
    """Refuse to make a VM of a drill under the name of the one that it is a copy of.

    Raises:
        InputError: it would be.
    """
    if name == captured:
        raise InputError(f"VM {name}: a drill restores it under another name, never under its own")


def require_isolated(drill: str, networks: Collection[str]) -> None:
    """Refuse to make a VM of a drill that has no network.

    Raises:
        InputError: the network is not there.
    """
    if drill not in networks:
        raise InputError(f"the isolated network {drill} is not there: it is made before the drill's VMs")


def require_mark(name: str, found: str | None, drill: str) -> None:
    """Refuse to remove a VM that this drill did not make.

    Args:
        found: The drill that its mark names, if it has one.

    Raises:
        InputError: it is another's.
    """
    if found != drill:
        whose = f"it was made for drill {found}" if found else "it was not made for a drill"
        raise InputError(f"VM {name} is not removed: {whose}, and not for {drill}")
