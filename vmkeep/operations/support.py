"""What a fleet declares and this version cannot do: said before anything is touched, never ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.components.open import ENGINES
from vmkeep.components.open import unsupported as no_engine
from vmkeep.errors import UnsupportedError
from vmkeep.fleet import dependencies
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations.drilled import drilled_vms, mute

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmkeep.fleet import VM, FleetFile


def unsupported(file: FleetFile, vms: Iterable[str] | None = None) -> list[str]:
    """Return one sentence for each declared thing that cannot be carried out.

    Args:
        vms: only what concerns these VMs; all by default.
    """
    return [*_of_vms(file, [*(file.fleet.vms if vms is None else vms)])]


def notices(file: FleetFile) -> list[str]:
    """Return one sentence for each declared thing that is kept for later and harms nothing now."""
    told = []
    if file.fleet.repository.retention is not None and file.fleet.schedules.prune is None:
        told.append(
            "repository.retention: without schedules.prune nothing is removed by itself; 'vmkeep prune' "
            "removes what it does not keep"
        )
    told += _locks(file)
    told += _drills(file)
    return told


def _locks(file: FleetFile) -> Iterator[str]:
    repository = file.fleet.repository
    if repository.object_lock is not None and file.fleet.schedules.prune is None:
        yield (
            "repository.object_lock: without schedules.prune nothing extends locks by itself: they end "
            f"{repository.object_lock.days} days or a little more after an upload; 'vmkeep prune' does it"
        )
    for name, copy in repository.copies.items():
        if copy.object_lock is not None:
            yield (
                f"repository.copies.{name}.object_lock: schedules.prune is for the repository itself; "
                f"'vmkeep prune --repository {name}' extends the locks of the copy"
            )


def _drills(file: FleetFile) -> Iterator[str]:
    """Tell what a scheduled drill will be refused for."""
    fleet = file.fleet
    if fleet.schedules.drill is None:
        return
    drilled = dependencies(fleet, drilled_vms(fleet, ()))
    running = [
        name
        for name in fleet.vms
        if name in drilled and fleet.hypervisors[fleet.vms[name].hypervisor].driver != "images"
    ]
    if found := mute(fleet, running):
        yield (
            f"schedules.drill: a drill is refused, for {', '.join(found)} has no guest agent: declare guest: "
            "{agent: true}, or name services in objectives that do not need it"
        )


def require_supported(file: FleetFile, vms: Iterable[str]) -> None:
    """Refuse an operation that would leave out something declared.

    Raises:
        UnsupportedError: lists all that is declared for *vms* and cannot be done.
    """
    found = unsupported(file, vms)
    if found:
        raise UnsupportedError("\n".join(found))


def _of_vms(file: FleetFile, vms: list[str]) -> Iterator[str]:
    base = file.path.absolute().parent
    for vm in vms:
        yield from _of_engines(vm, file.fleet.vms[vm])
    for name in dict.fromkeys(file.fleet.vms[vm].hypervisor for vm in vms):
        try:
            driver = open_hypervisor(name, file.fleet.hypervisors[name], base)
        except UnsupportedError as error:
            yield str(error)
            continue
        for vm in vms:
            if file.fleet.vms[vm].hypervisor == name:
                yield from driver.unsupported(vm, file.fleet.vms[vm])
                if driver.can_start:
                    yield from _of_gates(vm, file.fleet.vms[vm])


def _of_engines(name: str, vm: VM) -> Iterator[str]:
    for key, database in vm.components.databases.items():
        if database.engine not in ENGINES:
            yield no_engine(name, f"databases.{key}", database.engine)


def _of_gates(name: str, vm: VM) -> Iterator[str]:
    for check in vm.health:
        if check.image is not None:
            yield f"VM {name}: health image is for VMs that stay powered off: use agent, tcp or http"
        if check.sql is not None and check.sql.engine == "mariadb":
            yield f"VM {name}: health sql is not supported for mariadb by this version: use tcp or exec"
