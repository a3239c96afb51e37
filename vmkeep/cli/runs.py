"""Carrying something out with progress on the terminal, under Prefect or without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from vmkeep.cli.console import complain, err, print_json
from vmkeep.cli.fleet_file import load
from vmkeep.cli.results import RESUMED, print_report
from vmkeep.cli.results import as_json as report_json
from vmkeep.cli.watch import watcher
from vmkeep.operations import prepare
from vmkeep.operations.direct import run_direct

if TYPE_CHECKING:
    from vmkeep.cli.watch import Watch
    from vmkeep.operations.report import RunReport
    from vmkeep.operations.request import Request


@dataclass(frozen=True, slots=True)
class Mode:
    """How a request is carried out and shown."""

    direct: bool
    as_json: bool
    resume: str | None = None


def carry_out(request: Request, mode: Mode) -> None:
    """Carry out *request*, and end the program with the exit code of its report.

    Raises:
        VmkeepError: it could not begin; nothing was touched.
    """
    prepare.selected(load(request.fleet), request)  # a typing error is told at once, not by Prefect
    with watcher(err()) as watch:
        try:
            report = _run(request, mode, watch)
        except KeyboardInterrupt:
            if watch.run:
                again = (
                    f"--resume {watch.run} continues it" if request.operation in RESUMED else "call it again"
                )
                complain(f"run {watch.run} was interrupted; {again}")
            raise
    if mode.as_json:
        print_json(report_json(report))
    else:
        print_report(report)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _run(request: Request, mode: Mode, watch: Watch) -> RunReport:
    if mode.direct:
        return run_direct(request, observer=watch, resume=mode.resume)
    from flows.run import run_flow  # noqa: PLC0415  (Prefect takes seconds to import)

    return run_flow(request, observer=watch, resume=mode.resume)
