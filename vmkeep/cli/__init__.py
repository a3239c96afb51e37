"""The command line: what is typed, and what is shown. Everything it does is a call into the library.

`commands/` holds what can be typed and imports nothing heavy, so that `--help` answers at once; each command
then imports the module of its name beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `vmkeep --help` for what the codes mean.

    Args:
        arguments: those of the process by default.
    """
    from vmkeep.cli.app import run  # noqa: PLC0415  (whoever imports the package need not pay for typer)

    return run(arguments)
