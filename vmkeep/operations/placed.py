"""On which hypervisors VMs are restored, when a restore may choose among several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.errors import InputError
from vmkeep.fleet.suggest import suggestion
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations.prepare import selected
from vmkeep.planning.placement import Guest, Host, place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmkeep.fleet import VM, FleetFile, Selection
    from vmkeep.hypervisors.base import Capacity
    from vmkeep.operations.request import Request


def placed(file: FleetFile, request: Request) -> Request:
    """Return *request* with a hypervisor for each VM that it restores, if it names any to choose from.

    One alone is taken as it is. Of several each VM gets one that has room for it, so that the fullest is as
    empty as it can be, and what VMs are to be near or away from is kept; also what is not restored now counts
    there, where it is declared.

    Raises:
        InputError: there is no such hypervisor, no place for all, or nothing is restored.
    """
    names = tuple(dict.fromkeys(request.hypervisors))
    if not names:
        return request
    if request.operation != "restore":
        raise InputError(f"--hypervisor is for a restore, not for {request.operation}")
    for name in names:
        if name not in file.fleet.hypervisors:
            known = [*file.fleet.hypervisors]
            raise InputError(f"{file.path}: there is no hypervisor {name!r}{suggestion(name, known)}")
    selection = selected(file, request)
    if len(names) == 1:
        chosen: Mapping[str, str] = dict.fromkeys(selection.vms, names[0])
    else:
        chosen = _chosen(file, request, selection, names)
    return request.model_copy(update={"placed": chosen})


def _chosen(
    file: FleetFile, request: Request, selection: Selection, names: tuple[str, ...]
) -> Mapping[str, str]:
    base = file.path.absolute().parent
    rooms = {name: open_hypervisor(name, file.fleet.hypervisors[name], base).capacity() for name in names}
    hosts = [Host(name, room.cpus, room.memory, room.free) for name, room in rooms.items()]
    return place([_guest(file, request, name, {*selection.vms}, rooms) for name in selection.vms], hosts)


def _guest(
    file: FleetFile, request: Request, name: str, restored: set[str], rooms: Mapping[str, Capacity]
) -> Guest:
    vm = file.fleet.vms[name]
    near, away = _neighbours(file, name)
    never: dict[str, str] = {}
    for host, room in rooms.items():
        stay = {other for other in (near | away) - restored if file.fleet.vms[other].hypervisor == host}
        storages = {one.name for one in room.storages}
        missing = _storages(vm, request) - storages
        if missing and storages:
            never[host] = f"{host} has no storage {min(missing)} (--storage names another)"
        if stay & away:
            never[host] = f"{host} runs {min(stay & away)}, which {name} is to be away from"
        if near - restored - stay:
            never[host] = f"{host} does not run {min(near - restored - stay)}, which {name} is to be near"
    return Guest(name, vm.cpus, vm.memory, frozenset(near & restored), frozenset(away & restored), never)


def _neighbours(file: FleetFile, name: str) -> tuple[set[str], set[str]]:
    """Return the VMs that this one is to be near, and away from, whichever of them says so."""
    near, away = set(), set()
    for other, vm in file.fleet.vms.items():
        if vm.placement is None:
            continue
        near |= _concerned(name, other, vm.placement.near)
        away |= _concerned(name, other, vm.placement.away_from)
    return near, away


def _concerned(name: str, other: str, named: Iterable[str]) -> set[str]:
    if name == other:
        return set(named)
    return {other} if name in named else set()


def _storages(vm: VM, request: Request) -> set[str]:
    if request.storage is not None:
        return {request.storage}
    return {disk.storage for disk in vm.disks if disk.storage is not None}
