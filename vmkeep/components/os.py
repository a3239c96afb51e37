"""The operating system: all disks that no other component claims whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.components.whole_disks import restore_disks, save_disks
from vmkeep.errors import InputError

if TYPE_CHECKING:
    from vmkeep.components.base import RestoreContext, SaveContext
    from vmkeep.fleet.model import VM, OsComponent
    from vmkeep.repository.manifest import SavedComponent


def claimed_disks(vm: VM, config: OsComponent) -> tuple[str, ...]:
    """Return the disks that belong to the operating system, in order."""
    if config.disks is not None:
        return config.disks
    others = {component.disk for component in vm.components.filesystems.values() if component.disk}
    return tuple(disk.name for disk in vm.disks if disk.name not in others)


class OperatingSystem:
    """The component `os`. The VM's definition is part of every recovery point, so it is not saved again."""

    def __init__(self, config: OsComponent) -> None:
        self._config = config

    def save(self, context: SaveContext) -> SavedComponent:
        """Save its disks whole."""
        disks = claimed_disks(context.vm, self._config)
        unknown = set(disks) - {disk.name for disk in context.machine.disks}
        if unknown:
            raise InputError(
                f"VM {context.name}: os.disks names {', '.join(sorted(unknown))}, which it does not have"
            )
        return save_disks(context, disks, {"driver": context.hypervisor.driver})

    def restore(self, context: RestoreContext, saved: SavedComponent) -> None:
        """Write its disks; all are in place, or none."""
        restore_disks(context, saved)
