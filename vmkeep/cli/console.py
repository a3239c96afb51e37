"""What is printed: results on the standard output, progress and complaints on the standard error."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LEAST_WIDTH: Final = 160


def out() -> Console:
    """Return the console for results; found anew each time, for tests replace the stream."""
    from rich.console import Console  # noqa: PLC0415  (a complaint must not wait for it)

    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """Return the console for progress and complaints."""
    from rich.console import Console  # noqa: PLC0415  (as above)

    return Console(file=sys.stderr, highlight=False, soft_wrap=not sys.stderr.isatty())


def complain(message: str, program: str = "vmkeep") -> None:
    """Print why a command failed."""
    err().print(f"{program}: {message}", style="red", markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print something that does not stop the command."""
    err().print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a result for programs."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()  # who reads a pipe from a command that goes on waits for it


def print_table(table: Table) -> None:
    """Print a table; on a narrow terminal its lines go on below, so that ids can still be copied."""
    console = out()
    console.width = max(console.width, _LEAST_WIDTH)
    console.print(table, soft_wrap=False)


def local_time(text: str) -> str:
    """Return a time of a recovery point (UTC, ISO 8601) as local time, for people."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
