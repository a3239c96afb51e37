"""`vmkeep configure --dry-run`: what is not as declared."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from vmkeep.cli.console import out, print_json
from vmkeep.cli.fleet_file import load
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations import prepare, support

if TYPE_CHECKING:
    from vmkeep.fleet import FleetFile
    from vmkeep.hypervisors.base import Change
    from vmkeep.operations.request import Request


def differences(request: Request, *, as_json: bool) -> None:
    """Print the differences between what is declared and what is.

    Raises:
        InputError: a VM is unknown, or cannot become what is declared.
    """
    file = load(request.fleet)
    selection = prepare.selected(file, request)
    support.require_supported(file, selection.vms)
    found = {name: _changes(file, name) for name in selection.vms}
    if as_json:
        print_json({name: [asdict(change) for change in changes] for name, changes in found.items()})
        return
    for name, changes in found.items():
        out().print(f"{name}: {'as declared' if not changes else ''}".rstrip(), markup=False)
        for change in changes:
            out().print(_line(change), style="green" if change.actual is None else "yellow", markup=False)


def _changes(file: FleetFile, name: str) -> list[Change]:
    vm = file.fleet.vms[name]
    driver = open_hypervisor(
        vm.hypervisor, file.fleet.hypervisors[vm.hypervisor], file.path.absolute().parent
    )
    return [*driver.configure(name, vm, apply=False)]


def _line(change: Change) -> str:
    if change.actual is None:
        return f"  + {change.what}: {change.declared}"
    return f"  ~ {change.what}: {change.actual} -> {change.declared}"
