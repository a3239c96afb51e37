"""From a component as declared to the code that saves and restores it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkeep.components.applications import Application
from vmkeep.components.databases.postgresql import Postgresql
from vmkeep.components.databases.sqlite import Sqlite
from vmkeep.components.filesystems import FileSystem
from vmkeep.components.os import OperatingSystem
from vmkeep.errors import InputError, UnsupportedError
from vmkeep.fleet.model import Kind

if TYPE_CHECKING:
    from vmkeep.components.base import Component
    from vmkeep.fleet.model import VM, DatabaseComponent

ENGINES: Final = frozenset({"postgresql", "sqlite"})
"""The databases that can be saved on their own."""


def open_component(name: str, vm: VM, component: str) -> Component:
    """Return the component of VM *name* that is called *component*: `os`, or `kind.name`.

    Raises:
        InputError: the VM does not declare it.
        UnsupportedError: nothing can save it.
    """
    kind, _, key = component.partition(".")
    declared = vm.components
    if component == Kind.OS and declared.os is not None:
        return OperatingSystem(declared.os)
    if kind == Kind.FILESYSTEMS and key in declared.filesystems:
        return FileSystem(declared.filesystems[key])
    if kind == Kind.APPLICATIONS and key in declared.applications:
        return Application(declared.applications[key])
    if kind == Kind.DATABASES and key in declared.databases:
        return _database(name, component, declared.databases[key])
    raise InputError(f"VM {name} has no component {component}")


def _database(name: str, component: str, config: DatabaseComponent) -> Component:
    match config.engine:
        case "sqlite":
            return Sqlite(config)
        case "postgresql":
            return Postgresql(config)
        case _:
            raise UnsupportedError(unsupported(name, component, config.engine))


def unsupported(name: str, component: str, engine: str) -> str:
    """Say that databases of an engine cannot be saved on their own."""
    return (
        f"VM {name}: {component}: engine {engine} is not supported by this version: save the disk that it is "
        "on (os, or filesystems), or its files (applications)"
    )
