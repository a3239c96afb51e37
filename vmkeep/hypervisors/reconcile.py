"""What separates a declared VM from the actual one of the `images` driver. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from vmkeep.errors import InputError
from vmkeep.hypervisors.base import Change
from vmkeep.hypervisors.definition import Definition, DiskFile
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmkeep.fleet.model import VM, DiskConfig

Described = TypeVar("Described", bound=Definition)


def wanted_disks(vm: VM, actual: Definition | None) -> tuple[DiskFile, ...]:
    """Return the disks the VM should have: the declared ones in order, then any others it has."""
    known = {disk.name: disk for disk in actual.disks} if actual else {}
    result = []
    for disk in vm.disks:
        old = known.pop(disk.name, None)
        format = old.format if old else disk.format  # noqa: A001  (the word of the fleet file)
        file = old.file if old else f"{disk.name}.{disk.format}"
        result.append(DiskFile(name=disk.name, file=file, format=format, size=disk.size))
    return (*result, *known.values())


def differences(
    name: str, vm: VM, actual: Definition | None, wanted: Definition, *, adopted: bool
) -> list[Change]:
    """Return what has to change.

    Args:
        adopted: Only the VM's images are there; what else it is was never written down.

    Raises:
        InputError: a disk would shrink, or change its format.
    """
    changes = [Change("vm", None, name)] if actual is None else []
    if adopted:
        changes.append(Change("definition", None, f"for the images of {name} that are there"))
    for key in ("cpus", "memory", "firmware", "iso", "networks"):
        before = _shown(key, actual) if actual else None
        after = _shown(key, wanted)
        if before != after:
            changes.append(Change(key, before, after or "none"))
    for disk in vm.disks:
        changes += _disk(name, disk, actual.disk(disk.name) if actual else None)
    return changes


def as_it_is(vm: VM, actual: Definition) -> VM:
    """Return what is declared, and for all that is not, what is: only what someone wrote is changed."""
    said = vm.model_fields_set
    undeclared = {
        key: getattr(actual, key) for key in ("cpus", "memory", "firmware", "iso") if key not in said
    }
    if "networks" not in said:
        undeclared["networks"] = tuple(card.network for card in actual.networks)
    return vm.model_copy(update=undeclared)


def connected(captured: Described, networks: Mapping[str, str]) -> tuple[Described, list[Change]]:
    """Return a definition with cards on other networks, the new one by the old one; and what differs."""
    cards, changes = [], []
    for card in captured.networks:
        network = networks.get(card.network, card.network)
        if network != card.network:
            changes.append(Change(f"networks.{card.network}", card.network, network, applied=True))
        cards.append(card.model_copy(update={"network": network}))
    return captured.model_copy(update={"networks": tuple(cards)}), changes


def renamed(captured: Definition, name: str) -> tuple[Definition, tuple[Change, ...]]:
    """Return the definition of a copy, and what is another's in it now."""
    copy = captured.renamed(name)
    cards = zip(captured.networks, copy.networks, strict=True)
    changes = [("name", captured.name, name), ("uuid", captured.uuid, copy.uuid)]
    changes += [(f"networks.{old.network}", old.mac, new.mac) for old, new in cards]
    return copy, tuple(Change(what, old, new, applied=True) for what, old, new in changes)


def unsupported(vm: VM) -> Iterator[tuple[str, str]]:
    """Yield each declared thing that needs a running VM or a real hypervisor, and what to do."""
    off = "its VMs are powered off; remove it"
    if vm.guest is not None:
        yield ("guest.agent" if vm.guest.agent else "guest.ssh"), off
    if vm.placement is not None:
        yield "placement", "it has no hosts to choose from; remove it"
    for check in vm.health:
        if check.kind != "image":
            yield f"health {check.kind}", "its VMs are powered off; use {image: true}"
    for disk in vm.disks:
        if disk.storage is not None:
            yield f"disks.{disk.name}.storage", "all disks lie in the VM's folder; remove it"
    yield from _unsupported_components(vm, off)


def _unsupported_components(vm: VM, off: str) -> Iterator[tuple[str, str]]:
    for key, application in vm.components.applications.items():
        for hook, commands in (("pre", application.pre), ("post", application.post)):
            if commands:
                yield f"applications.{key}.{hook}", off


def _disk(name: str, declared: DiskConfig, actual: DiskFile | None) -> Iterator[Change]:
    key = f"disks.{declared.name}"
    if actual is None:
        yield Change(key, None, f"{format_size(declared.size)} {declared.format}")
        return
    if "format" in declared.model_fields_set and declared.format != actual.format:
        raise InputError(
            f"VM {name}: disk {declared.name} is {actual.format}, declared is {declared.format}: "
            f"convert it with qemu-img convert, or declare format: {actual.format}"
        )
    if declared.size < actual.size:
        raise InputError(
            f"VM {name}: disk {declared.name} is {format_size(actual.size)}, declared is "
            f"{format_size(declared.size)}: disks are never shrunk, declare at least its size"
        )
    if declared.size > actual.size:
        yield Change(f"{key}.size", format_size(actual.size), format_size(declared.size))


def _shown(key: str, definition: Definition) -> str | None:
    value = getattr(definition, key)
    if key == "networks":
        return ", ".join(card.network for card in value) or None
    if key == "memory":
        return format_size(value)
    return None if value is None else str(value)
