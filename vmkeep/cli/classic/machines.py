"""What `vmcreate`, `vconfig`, `vdisk` and `vcpu` do: change the fleet file, then make the VM what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from ruamel.yaml.comments import CommentedMap

from vmkeep.cli.console import out, print_table
from vmkeep.cli.edit import edit, flow_map, items, machine
from vmkeep.cli.fleet_file import load
from vmkeep.cli.runs import Mode, carry_out
from vmkeep.errors import InputError, VmkeepError
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations import support
from vmkeep.operations.request import Request
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmkeep.fleet import VM, FleetFile
    from vmkeep.hypervisors.base import Hypervisor


def create(path: Path, name: str, iso: str | None, hypervisor: str | None) -> None:
    """Declare a VM, create it, and start it where its driver can: it boots from *iso*.

    Raises:
        InputError: there is one of that name, or the driver cannot make it.
    """

    def change(document: CommentedMap) -> None:
        if name in document["vms"]:
            raise InputError(f"there is a VM {name!r} in {path}: change it with vconfig, vdisk and vcpu")
        made = CommentedMap()
        known = list(document["hypervisors"])
        if hypervisor is not None:
            made["hypervisor"] = hypervisor
        elif "hypervisor" not in (document.get("defaults") or {}) and len(known) == 1:
            made["hypervisor"] = known[0]
        if iso is not None:
            made["iso"] = iso
        document["vms"][name] = made

    _apply(path, name, change)
    driver = _driver(load(path), name)
    if driver.can_start:
        driver.start(name)
        out().print(f"{name} is started", markup=False)


def forget(path: Path, name: str) -> None:
    """Take a VM out of the fleet file; the VM itself, its disks and its recovery points stay.

    Raises:
        FleetError: others still name it.
    """

    def change(document: CommentedMap) -> None:
        machine(document, name)
        del document["vms"][name]

    _show(edit(path, change))
    out().print(
        f"{name} is no part of the fleet any more; the VM, its disks and its recovery points stay",
        markup=False,
    )


def add_network(path: Path, name: str, network: str) -> None:
    """Give a VM a network adapter."""

    def change(document: CommentedMap) -> None:
        items(machine(document, name), "networks", [*_vm(path, name).networks]).append(network)

    _apply(path, name, change)


def remove_network(path: Path, name: str, network: str) -> None:
    """Take a network adapter away."""

    def change(document: CommentedMap) -> None:
        there = items(machine(document, name), "networks", [*_vm(path, name).networks])
        if network not in there:
            raise InputError(f"VM {name} has no network {network!r}; it has {', '.join(there) or 'none'}")
        there.remove(network)

    _apply(path, name, change)


def add_disk(path: Path, name: str, size: str, storage: str | None, disk: str | None) -> None:
    """Give a VM a disk, or let one of that name grow."""

    def change(document: CommentedMap) -> None:
        there = items(machine(document, name), "disks", [])
        for one in there:
            if one["name"] == disk:
                if storage is not None and one.get("storage") != storage:
                    raise InputError(f"VM {name}: disk {disk} lies elsewhere, and is not moved: leave -t out")
                one["size"] = size
                return
        where = {} if storage is None else {"storage": storage}
        there.append(flow_map(name=disk or _free_name({one["name"] for one in there}), size=size, **where))

    _apply(path, name, change)


def remove_disk(path: Path, name: str, disk: str) -> None:
    """Take a disk out of the fleet file; what is in it stays where it is."""

    def change(document: CommentedMap) -> None:
        there = items(machine(document, name), "disks", [])
        kept = [one for one in there if one["name"] != disk]
        if len(kept) == len(there):
            known = ", ".join(one["name"] for one in there) or "none"
            raise InputError(f"VM {name} declares no disk {disk!r}; it has {known}")
        there[:] = kept

    _show(edit(path, change))
    out().print(
        f"disk {disk} of {name} is not saved any more; the disk itself stays: vmkeep deletes none",
        markup=False,
    )


def set_processors(path: Path, name: str, count: int) -> None:
    """Give a VM *count* processors in all."""

    def change(document: CommentedMap) -> None:
        machine(document, name)["cpus"] = count

    _apply(path, name, change)


def list_machines(path: Path) -> None:
    """Print the VMs of the fleet, and which of them exist."""
    file = load(path)
    table = _table("VM", "EXISTS", "HYPERVISOR", "CPUS", "MEMORY", "DISKS", "ISO")
    for name, vm in file.fleet.vms.items():
        disks = format_size(sum(disk.size for disk in vm.disks)) if vm.disks else "none"
        table.add_row(
            name,
            _exists(file, name),
            vm.hypervisor,
            str(vm.cpus),
            format_size(vm.memory),
            disks,
            vm.iso or "",
        )
    print_table(table)


def list_networks(path: Path, name: str) -> None:
    """Print the networks of a VM."""
    table = _table("ADAPTER", "NETWORK")
    for number, network in enumerate(_vm(path, name).networks, 1):
        table.add_row(str(number), network)
    print_table(table)


def list_disks(path: Path, name: str) -> None:
    """Print the disks of a VM."""
    table = _table("DISK", "SIZE", "FORMAT", "STORAGE")
    for disk in _vm(path, name).disks:
        table.add_row(disk.name, format_size(disk.size), disk.format, disk.storage or "")
    print_table(table)


def list_processors(path: Path, name: str) -> None:
    """Print how many processors a VM has."""
    out().print(str(_vm(path, name).cpus), markup=False)


def _apply(path: Path, name: str, change: Callable[[CommentedMap], None]) -> None:
    """Change the fleet file if the VM can become what it would say, and make it that."""

    def check(would_be: FleetFile) -> None:
        support.require_supported(would_be, [name])
        _driver(would_be, name).configure(name, would_be.fleet.vms[name], apply=False)

    _show(edit(path, change, check))
    carry_out(Request(operation="configure", fleet=path, targets=(name,)), Mode(direct=True, as_json=False))


def _show(lines: list[str]) -> None:
    for line in lines:
        out().print(line, style="green" if line.startswith("+") else "red", markup=False)


def _driver(file: FleetFile, name: str) -> Hypervisor:
    hypervisor = file.fleet.vms[name].hypervisor
    return open_hypervisor(hypervisor, file.fleet.hypervisors[hypervisor], file.path.absolute().parent)


def _vm(path: Path, name: str) -> VM:
    fleet = load(path).fleet
    if name not in fleet.vms:
        raise InputError(f"there is no VM {name!r} in {path}; 'vmcreate -l' lists them")
    return fleet.vms[name]


def _exists(file: FleetFile, name: str) -> str:
    try:
        return "yes" if _driver(file, name).exists(name) else "no"
    except VmkeepError as error:
        return f"? ({error})"


def _free_name(taken: set[Any]) -> str:
    return next(name for number in range(1, len(taken) + 2) if (name := f"disk{number}") not in taken)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table
