"""Shows a run while it goes on: bars on a terminal, lines anywhere else."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from vmkeep.planning import State
from vmkeep.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from vmkeep.operations.report import StepReport
    from vmkeep.operations.run import Run
    from vmkeep.planning import Outcome, Step

_EVERY_S: Final = 30.0
"""How often a long step says how far it is where there are no bars."""

_LOOKS: Final = {State.SUCCEEDED: ("done", "green"), State.FAILED: ("FAILED", "red"),
                 State.SKIPPED: ("skipped", "yellow")}  # fmt: skip


class Watch:
    """One line for each step that is over. Safe to call from several threads."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._clock = time.monotonic
        self._since: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._told: dict[str, float] = {}
        self.run = ""
        """The id of the run, once it has begun."""

    def begun(self, run: Run, finished: frozenset[str]) -> None:
        """Say what begins."""
        self.run = run.id
        again = f", {len(finished)} of them done before" if finished else ""
        self._print(
            f"{run.plan.operation} of fleet {run.plan.fleet}: run {run.id}, {len(run.plan)} steps{again}"
        )

    def started(self, step: Step) -> None:
        """Note the time."""
        with self._lock:
            self._since[step.id] = self._told[step.id] = self._clock()

    def advanced(self, step_id: str, size: int) -> None:
        """Say now and then how far a long step is."""
        with self._lock:
            now = self._clock()
            done = self._done[step_id] = self._done.get(step_id, 0) + size
            due = now - self._told.setdefault(step_id, now) >= _EVERY_S
            if due:
                self._told[step_id] = now
            seconds = now - self._since.setdefault(step_id, now)
        if due:
            self._print(f"   ...   {step_id}: {format_size(done)}, {format_size(done / seconds)}/s")

    def ended(self, step: Step, outcome: Outcome, report: StepReport | None) -> None:
        """Say how a step ended."""
        with self._lock:
            since = self._since.get(step.id)
        word, style = _LOOKS[outcome.state]
        told = outcome.reason if report is None else report.text
        took = "" if since is None else f" ({format_duration(self._clock() - since)})"
        self._print(f"{word:>7}  {step.id}{': ' if told else ''}{told}{took}", style, len(word))

    def interrupted(self) -> None:
        """Say that it was heard: what runs is ended properly, which may take a moment."""
        self._print("interrupted: what runs now is brought to an end, and snapshots are released", "yellow")

    def close(self) -> None:
        """Leave the terminal as it was."""

    def _print(self, line: str, style: str = "", styled: int = 0) -> None:
        text = Text(line)
        if style:
            text.stylize(style, 0, None if style == "red" else max(styled, 7))
        self._console.print(text, soft_wrap=True)


class Bars(Watch):
    """Shows also how far each long step is, how fast, and how long it will take."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=12),
            _Amount(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._all: TaskID | None = None
        self._bars: dict[str, TaskID] = {}

    def begun(self, run: Run, finished: frozenset[str]) -> None:
        """Start the bars."""
        super().begun(run, finished)
        self._progress.start()
        self._all = self._progress.add_task(
            run.plan.operation, total=len(run.plan), completed=len(finished), steps=True
        )

    def started(self, step: Step) -> None:
        """Show a bar for a step that moves data."""
        super().started(step)
        if step.estimate.size:
            bar = self._progress.add_task(step.id, total=step.estimate.size, steps=False)
            with self._lock:
                self._bars[step.id] = bar

    def advanced(self, step_id: str, size: int) -> None:
        """Move the bar; one that turns out longer than was thought only counts from then on."""
        with self._lock:
            bar = self._bars.get(step_id)
        if bar is None:
            bar = self._progress.add_task(step_id, total=None, steps=False)
            with self._lock:
                bar = self._bars.setdefault(step_id, bar)
        self._progress.advance(bar, size)
        shown = self._progress.tasks[self._progress.task_ids.index(bar)]
        if shown.total is not None and shown.completed > shown.total:
            shown.total = None  # update() takes None for 'as it was'

    def ended(self, step: Step, outcome: Outcome, report: StepReport | None) -> None:
        """Take the bar away."""
        with self._lock:
            bar = self._bars.pop(step.id, None)
        if bar is not None:
            self._progress.remove_task(bar)
        super().ended(step, outcome, report)
        if self._all is not None:
            self._progress.advance(self._all)

    def close(self) -> None:
        """Stop the bars."""
        self._progress.stop()


class _Amount(ProgressColumn):
    """Bytes done, of about how many, and how many a second; or steps."""

    def render(self, task: Task) -> Text:
        if task.fields["steps"]:
            return Text(f"{task.completed:.0f} of {task.total:.0f} steps")
        of = f" of about {format_size(task.total)}" if task.total is not None else ""
        # The first moments tell nothing about the rest.
        steady = task.speed and task.elapsed is not None and task.elapsed > 1
        rate = f", {format_size(task.speed or 0)}/s" if steady else ""
        return Text(f"{format_size(task.completed)}{of}{rate}")


@contextmanager
def watcher(console: Console) -> Iterator[Watch]:
    """Give an observer that fits the console."""
    watch = Bars(console) if console.is_terminal else Watch(console)
    try:
        yield watch
    finally:
        watch.close()
