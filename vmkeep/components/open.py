"""From a component as declared to the code that saves and restores it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.components.os import OperatingSystem
from vmkeep.errors import InputError
from vmkeep.fleet.model import Kind

if TYPE_CHECKING:
    from vmkeep.components.base import Component
    from vmkeep.fleet.model import VM


def open_component(name: str, vm: VM, component: str) -> Component:
    """Return the component of VM *name* that is called *component*: `os`, or `kind.name`.

    Raises:
        InputError: the VM does not declare it.
    """
    declared = vm.components
    if component == Kind.OS and declared.os is not None:
        return OperatingSystem(declared.os)
    raise InputError(f"VM {name} has no component {component}")
