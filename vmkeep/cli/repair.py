"""`vmkeep repair`: what was damaged, what is whole again, what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.cli.console import out, print_json
from vmkeep.errors import IntegrityError
from vmkeep.operations.repair import mend
from vmkeep.units import format_size

if TYPE_CHECKING:
    from vmkeep.fleet import FleetFile


def repair(file: FleetFile, repository: str | None, *, as_json: bool) -> None:
    """Repair, and say what was done.

    Raises:
        IntegrityError: something is damaged still.
    """
    outcome = mend(file, repository)
    problems = [*outcome.left, *outcome.found.problems]
    if as_json:
        damages = [str(each) for each in outcome.found.damages]
        print_json(
            {
                "damages": damages,
                "repaired": list(outcome.repaired),
                "stored": outcome.stored,
                "left": problems,
            }
        )
    else:
        for what in outcome.repaired:
            out().print(f"repaired {what}", markup=False)
        out().print(
            f"{outcome.found.packs} packs read back, {len(outcome.found.broken)} damaged; "
            f"{format_size(outcome.stored)} stored again",
            markup=False,
        )
    if problems:
        raise IntegrityError("still damaged:\n" + "\n".join(problems))
