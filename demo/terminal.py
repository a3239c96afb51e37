"""Commands as a person would type them, what they said, and the report about it all."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmkeep.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LONGEST_S: Final = 600.0
"""No command of the demo takes as long on any machine; one that does hangs."""
_END_S: Final = 60.0


class DemoError(Exception):
    """The demo did not show what it promises."""


@dataclass(slots=True)
class Act:
    """A part of the demo, and what came out of it."""

    title: str
    seconds: float = 0.0
    results: list[str] = field(default_factory=list)
    """One sentence each; of the summary."""
    lines: list[str] = field(default_factory=list)
    """Markdown for the report."""


class Terminal:
    """Shows what is done in *folder*, and remembers it for the report."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        """Begin in *folder*, with *settings* as variables of the environment for each command."""
        self.folder = folder
        self.console = Console(highlight=False)
        self.acts: list[Act] = []
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "VMKEEP_"))
        }
        self._environment = {**kept, **settings}

    def act(self, title: str, play: Callable[[], None]) -> None:
        """Do a part of the demo under a heading, and take its time."""
        act = Act(title)
        self.acts.append(act)
        self.console.print()
        self.console.rule(Text(f"{len(self.acts)}. {title}", "bold"), align="left", style="dim")
        begun = time.monotonic()
        play()
        act.seconds = time.monotonic() - begun

    def say(self, text: str) -> None:
        """Tell what the demo itself does."""
        self.console.print(Text(text, "cyan"), soft_wrap=True)
        self.acts[-1].lines.append(f"{text}\n")

    def result(self, text: str) -> None:
        """Tell what came out; it is in the summary, too."""
        self.console.print(Text.assemble(("✓ ", "bold green"), text), soft_wrap=True)
        self.acts[-1].results.append(text)

    def vmkeep(self, *arguments: str) -> None:
        """Run a command of vmkeep, which prints for people.

        Raises:
            DemoError: it failed.
        """
        self._run(arguments, output=None)

    def vmkeep_json(self, *arguments: str, file: str) -> dict[str, Any]:
        """Run a command of vmkeep with `--json`, keep its output in *file*, and return it.

        Raises:
            DemoError: it failed.
        """
        path = self.folder / file
        with path.open("w", encoding="utf-8") as output:
            self._run((*arguments, "--json"), output=output, to=f" > {file}")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.acts[-1].lines += _steps(found)
        return found

    def summary(self) -> Table:
        """Return what was done, with times."""
        table = Table(title="What was done", title_justify="left", title_style="bold", header_style="bold")
        table.add_column("", justify="right")
        table.add_column("Act", max_width=30)
        table.add_column("Time", justify="right", no_wrap=True)
        table.add_column("Result")
        for number, act in enumerate(self.acts, 1):
            results = "\n".join(act.results)
            table.add_row(
                str(number), act.title, format_duration(act.seconds), Text(results), end_section=True
            )
        return table

    def report(self) -> str:
        """Return all that was done as Markdown."""
        lines = ["# A demo of vmkeep", "", "![the fleet](fleet.svg)", ""]
        for number, act in enumerate(self.acts, 1):
            lines += [f"## {number}. {act.title} ({format_duration(act.seconds)})", "", *act.lines, ""]
            lines += [f"- **{result}**" for result in act.results] + [""]
        return "\n".join(lines)

    def _run(self, arguments: tuple[str, ...], *, output: Any, to: str = "") -> None:
        shown = f"vmkeep {shlex.join(arguments)}{to}"
        self.console.print(Text.assemble(("$ ", "dim"), (shown, "bold")), soft_wrap=True)
        begun = time.monotonic()
        code = self._wait([str(Path(sys.executable).with_name("vmkeep")), *arguments], output)
        took = format_duration(time.monotonic() - begun)
        self.acts[-1].lines.append(f"    $ {shown}      # {took}\n")
        if code:
            raise DemoError(f"'{shown}' in {self.folder} ended with exit code {code}")

    def _wait(self, command: list[str], output: Any) -> int:
        """Run a command and return its exit code; when the demo is ended, let it end properly, too."""
        process = subprocess.Popen(
            command, cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=output
        )
        try:
            return process.wait(_LONGEST_S)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"{' '.join(error.cmd)} did not end within {_LONGEST_S:.0f} s") from error
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(_END_S)


def _steps(found: Mapping[str, Any]) -> list[str]:
    """Return the steps of a run as a table."""
    rows = [
        f"| {step['step']} | {step['state']} | {step['seconds'] or 0:.2f} s | {step['text']} |"
        for step in found.get("steps", ())
    ]
    if not rows:
        return []
    return ["| step | state | time | what it did |", "|---|---|---:|---|", *rows, ""]
