"""`vmkeep graph`: the fleet, or a plan, as a picture."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from vmkeep.cli.console import err
from vmkeep.cli.fleet_file import load
from vmkeep.cli.plan import preview
from vmkeep.errors import AccessError
from vmkeep.operations.request import Request
from vmkeep.reports import graph_text
from vmkeep.reports.fleet_picture import fleet_svg
from vmkeep.reports.plan_picture import plan_svg

if TYPE_CHECKING:
    from pathlib import Path

_BY_SUFFIX: Final = {".mmd": "mermaid", ".mermaid": "mermaid", ".dot": "dot", ".gv": "dot"}
_FLEET: Final = {"svg": fleet_svg, "mermaid": graph_text.fleet_mermaid, "dot": graph_text.fleet_dot}
_PLAN: Final = {"svg": plan_svg, "mermaid": graph_text.plan_mermaid, "dot": graph_text.plan_dot}


def graph(path: Path, *, operation: str | None, form: str | None, output: Path | None) -> None:
    """Draw the fleet, or the plan of *operation*.

    Args:
        form: `svg`, `mermaid` or `dot`; by default what the name of *output* says, or `svg`.

    Raises:
        FleetError: the fleet file has problems.
        AccessError: the picture cannot be written.
    """
    form = form or (_BY_SUFFIX.get(output.suffix, "svg") if output else "svg")
    file = load(path)
    if operation is None:
        picture = _FLEET[form](file.fleet)
    else:
        picture = _PLAN[form](
            preview(file, Request.model_validate({"operation": operation, "fleet": path})).plan
        )
    if output is None:
        sys.stdout.write(picture)
        return
    try:
        output.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise AccessError(f"cannot write {output}: {error.strerror}") from error
    err().print(f"wrote {output}", markup=False)
