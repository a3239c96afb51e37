"""Every error vmkeep raises on purpose, grouped by what the operator does next.

VmkeepError
+- InputError        fix what you typed: fleet file, option, selection          exit 2
|  +- FleetError       the fleet file; lists every problem with file:line:key
|  +- UnsupportedError the declared thing is not supported by this driver
+- AccessError       wrong key, credentials or permission                       exit 6
+- TemporaryError    try again: the other side is away or busy                  exit 5
+- SourceError       the machine or its disk is not in a state to be saved      exit 1
|  +- SourceChangedError  it ran or changed while it was read
|  +- DirtyError          a database or file system was not stopped cleanly
|  +- GuestError          the inside of a running VM refuses, or a command in it failed
+- IntegrityError    stop and look: stored data is damaged or missing           exit 4
+- ConflictError     another writer decided first; start a new session          exit 1
+- PartialError      a run ended with something missing                         exit 3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class VmkeepError(Exception):
    """The root of the tree; its message is written for the operator."""

    exit_code: ClassVar[int] = 1


class InputError(VmkeepError):
    """What was typed cannot be carried out; nothing was touched."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a fleet file, and where."""

    file: str
    line: int
    """Counted from 1."""
    column: int
    """Counted from 1."""
    key: str
    """The path of keys, such as `vms.db1.disks[0].size`; empty for the file as a whole."""
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}"
        return (
            f"{where}: {self.key}: {self.message}" if self.key else f"{where}:{self.column}: {self.message}"
        )


class FleetError(InputError):
    """The fleet file has problems; the message lists each with file, line and key."""

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class UnsupportedError(InputError):
    """The fleet declares something that the driver at hand does not support."""


class AccessError(VmkeepError):
    """A key, credential or permission does not open what it should."""

    exit_code = 6


class TemporaryError(VmkeepError):
    """The other side is away or busy; the same call may succeed later."""

    exit_code = 5


class SourceError(VmkeepError):
    """A machine, disk or component is not in a state to be saved or written."""


class SourceChangedError(SourceError):
    """The source ran, or changed while it was read: what was read is no recovery point."""


class DirtyError(SourceError):
    """A database or file system was not stopped cleanly."""


class GuestError(SourceError):
    """The inside of a running VM refuses something, or a command in it failed."""


class IntegrityError(VmkeepError):
    """Stored data is damaged or missing; the message says which, and what it affects."""

    exit_code = 4


class NotFoundError(VmkeepError):
    """An object, recovery point, component or file is not there."""


class ConflictError(VmkeepError):
    """Another writer decided first; this session must not continue."""


class PartialError(VmkeepError):
    """A run ended, and something in it is missing or failed."""

    exit_code = 3
