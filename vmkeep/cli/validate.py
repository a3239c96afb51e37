"""`vmkeep validate`: is the fleet file right, and what of it cannot be done yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep import fleet as fleets
from vmkeep.cli.console import out, print_json, warn
from vmkeep.operations import support

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.fleet import Fleet


def validate(path: Path, *, as_json: bool) -> None:
    """Print a summary, and warnings about what this version does not do.

    Raises:
        FleetError: the file has problems; lists all of them.
    """
    file = fleets.load(path)
    unsupported, notices = support.unsupported(file), support.notices(file)
    if as_json:
        print_json(
            {"valid": True, "file": str(path), "summary": _summary(file.fleet),
             "unsupported": unsupported, "notices": notices}
        )  # fmt: skip
        return
    out().print(f"{path}: OK: {_summary(file.fleet)}", markup=False)
    for sentence in unsupported:
        warn(f"not supported: {sentence}")
    for sentence in notices:
        warn(sentence)


def _summary(fleet: Fleet) -> str:
    components = sum(len(fleets.component_names(vm)) for vm in fleet.vms.values())
    edges = sum(len(vm.depends_on) for vm in fleet.vms.values())
    counts = [
        (len(fleet.vms), "VM"), (components, "component"), (edges, "dependency"),
        (len(fleet.consistency_groups), "consistency group"), (len(fleet.hypervisors), "hypervisor"),
    ]  # fmt: skip
    return f"fleet {fleet.fleet}: " + ", ".join(_count(*one) for one in counts)


def _count(number: int, what: str) -> str:
    if number == 1:
        return f"1 {what}"
    return f"{number} {what[:-1]}ies" if what.endswith("y") else f"{number} {what}s"
