"""The six classic commands: vmcreate, vconfig, vdisk, vcpu, vmbackup, vmrestore.

Each changes one thing of one VM in the fleet file, or saves or restores parts of it, and then does what
`vmkeep configure`, `backup` or `restore` does. `commands` holds what can be typed, and imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def vmcreate(arguments: Sequence[str] | None = None) -> int:
    """Run `vmcreate` and return its exit code."""
    return _run("vmcreate", arguments)


def vconfig(arguments: Sequence[str] | None = None) -> int:
    """Run `vconfig` and return its exit code."""
    return _run("vconfig", arguments)


def vdisk(arguments: Sequence[str] | None = None) -> int:
    """Run `vdisk` and return its exit code."""
    return _run("vdisk", arguments)


def vcpu(arguments: Sequence[str] | None = None) -> int:
    """Run `vcpu` and return its exit code."""
    return _run("vcpu", arguments)


def vmbackup(arguments: Sequence[str] | None = None) -> int:
    """Run `vmbackup` and return its exit code."""
    return _run("vmbackup", arguments)


def vmrestore(arguments: Sequence[str] | None = None) -> int:
    """Run `vmrestore` and return its exit code."""
    return _run("vmrestore", arguments)


def _run(name: str, arguments: Sequence[str] | None) -> int:
    from vmkeep.cli.app import run_program  # noqa: PLC0415  (whoever imports the package need not pay for it)
    from vmkeep.cli.classic.commands import program  # noqa: PLC0415

    return run_program(program(name), name, arguments)
