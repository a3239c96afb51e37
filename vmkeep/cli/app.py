"""The program `vmkeep`: its commands, and how a failure becomes a message and an exit code."""

from __future__ import annotations

import os
import signal
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

import typer

from vmkeep.cli.commands import fleets, keys, machine, points, prune, runs
from vmkeep.cli.console import complain
from vmkeep.cli.options import examples, version
from vmkeep.errors import VmkeepError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

INTERRUPTED: Final = 130
"""The exit code of a run that was stopped by a signal, as shells have it."""

_EPILOG: Final = examples(
    "vmkeep init",
    "vmkeep backup",
    "vmkeep points",
    "vmkeep restore db1 --as db1=db1-copy",
    "",
    "Exit codes: 0 done; 1 failed; 2 wrong input, nothing was touched; 3 partial, something is missing; "
    "4 stored data is damaged; 5 the other side is away, try again; 6 wrong key or no permission; "
    "130 interrupted.",
    "",
    "Environment: VMKEEP_FLEET (the fleet file), VMKEEP_STATE (where runs keep what is not uploaded yet), "
    "VMKEEP_DEBUG=1 (tracebacks), NO_COLOR.",
)


def _build() -> typer.Typer:
    app = typer.Typer(
        name="vmkeep",
        help="Back up and restore fleets of virtual machines as one dependency graph.",
        epilog=_EPILOG,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(version)
    for module in (fleets, runs, points, prune, keys, machine):
        module.add_to(app)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `vmkeep.cli.main`."""
    return run_program(_build(), "vmkeep", arguments)


def run_program(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a program that is called *name*, and return its exit code: a failure becomes a message."""
    try:
        with _interrupted_by_signals():
            typer.main.get_command(app).main(
                args=None if arguments is None else list(arguments), prog_name=name
            )
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except VmkeepError as error:
        if os.environ.get("VMKEEP_DEBUG"):
            traceback.print_exc()
        complain(str(error), name)
        return error.exit_code
    except OSError as error:  # this machine: a disk that is full, a folder that is none
        if os.environ.get("VMKEEP_DEBUG"):
            traceback.print_exc()
        told = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        complain(f"{told}; VMKEEP_DEBUG=1 shows where", name)
        return VmkeepError.exit_code
    return 0


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let the end of a service or of an SSH connection stop a run as Ctrl-C does: cleanly."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    changed = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    for number in changed:  # but nohup ignores SIGHUP, and means it
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
