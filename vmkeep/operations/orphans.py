"""What runs left on hypervisors whose notes are lost: found by its mark, and by the process that made it.

A run that is killed leaves its folder, and `reap` undoes what that names. When the folder is gone too, or the
machine that it was on, what was made still says so itself: VMs and networks of drills, disks half restored.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from vmkeep.errors import VmkeepError
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations import serving
from vmkeep.operations.state import state_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.fleet import FleetFile
    from vmkeep.hypervisors.base import Hypervisor, Orphan


def clear(file: FleetFile) -> list[str]:
    """Remove what processes that are gone for certain left on the hypervisors of a fleet.

    Returns:
        One sentence for each thing that could not be removed now; the next call tries again.
    """
    told = []
    for hypervisor, driver, one in _found(file):
        if one.gone:
            try:
                _remove(file, hypervisor, driver, one)
            except VmkeepError as error:
                told.append(f"{sentence(one)} could not be removed: {error}")
    return told


def found(file: FleetFile) -> list[Orphan]:
    """Return what is there whose process is gone, or cannot be seen from here."""
    return [one for _, _, one in _found(file)]


def sentence(one: Orphan) -> str:
    """Say what it is."""
    if one.drill:
        what = f"VM {one.vm}" if one.vm else f"network {one.drill}"
        return f"{what} of a drill, made by {one.maker},"
    return f"VM {one.vm}: new disk {', '.join(one.disks)}, half restored by {one.maker},"


def _found(file: FleetFile) -> Iterator[tuple[str, Hypervisor, Orphan]]:
    """Yield what is there, VMs before networks, by hypervisor; one that cannot be reached has nothing."""
    base = file.path.absolute().parent
    for name, config in file.fleet.hypervisors.items():
        try:
            driver = open_hypervisor(name, config, base)
            there = driver.orphans()
        except VmkeepError:
            continue  # whoever needs it will say so
        for one in there:
            if not (one.drill and _is_known(one.drill)):
                yield name, driver, one


def _is_known(drill: str) -> bool:
    """Tell whether the run of a drill has its folder: then that says what is to be done, whoever does it."""
    run = drill.removeprefix("vmkeep-drill-")
    return any(folder.is_dir() for folder in state_folder("any").parent.glob(f"*/runs/{run}"))


def _remove(file: FleetFile, hypervisor: str, driver: Hypervisor, one: Orphan) -> None:
    if not one.drill:
        driver.discard_disks(one.vm, one.disks)
        return
    if not one.vm:
        driver.end_isolation(one.drill)
        return
    driver.remove(one.vm, drill=one.drill)
    serving.dismiss(serving.folder_of(file, hypervisor, one.vm))
    if driver.streams is not None:
        shutil.rmtree(driver.streams.folder(one.vm), ignore_errors=True)
