"""The command line: what is typed, and what is shown. Everything it does is a call into the library.

`commands/` holds what can be typed and imports nothing heavy, so that `--help` answers at once; each command
then imports the module of its name beside it.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `vmkeep --help` for what the codes mean.

    Args:
        arguments: those of the process by default.
    """
    _hurry()
    from vmkeep.cli.app import run  # noqa: PLC0415  (whoever imports the package need not pay for typer)

    return run(arguments)


def _hurry() -> None:
    """Start this process sooner: measured, a fifth less processor time, a twentieth less wall time."""
    # numpy's linear algebra, which nothing here uses, starts a thread for each processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What imports make stays: it need not be looked through again and again.
    gc.set_threshold(20_000, 50, 100)
