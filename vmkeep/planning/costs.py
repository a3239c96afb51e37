"""What steps take: bytes, seconds, and the scarce things they hold meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkeep.fleet import disks_of_os, kind_of
from vmkeep.fleet.model import Kind
from vmkeep.planning.step import Estimate

if TYPE_CHECKING:
    from vmkeep.fleet.model import VM, Fleet
    from vmkeep.planning.facts import Facts

UPLOAD: Final = "upload"
LINE: Final = "bandwidth"
"""What uploads share where the fleet limits it. Only predictions count it: real ones share by themselves."""


def limits_of(fleet: Fleet) -> dict[str, int]:
    """Return how many steps may hold each resource at once, by the names that steps use.

    `hypervisor:NAME`, `host:NAME`, `storage:NAME` and `upload`; what is not in it is not scarce.
    """
    return {
        f"hypervisor:{key}" if key in fleet.hypervisors else key: value
        for key, value in fleet.limits.items()
        if isinstance(value, int)
    }


def predicted_limits(fleet: Fleet) -> dict[str, int]:
    """Return `limits_of`, and that uploads share a line.

    One after another at its full speed, they are over when they would be if they shared it fairly.
    """
    return limits_of(fleet) | ({LINE: 1} if fleet.bandwidth is not None else {})


def disks_of(vm: VM, component: str) -> tuple[str, ...]:
    """Return the disks that saving *component* may read, in the order of their declaration.

    Files lie on any disk: which one is known only inside the VM.
    """
    kind, _, name = component.partition(".")
    if kind == Kind.OS:
        return disks_of_os(vm)
    if kind_of(component) is Kind.FILESYSTEMS and vm.components.filesystems[name].disk is not None:
        return (str(vm.components.filesystems[name].disk),)
    return tuple(disk.name for disk in vm.disks)


def holds(fleet: Fleet, facts: Facts, name: str, disks: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the resources of a step that works on the VM *name* and moves data of its *disks*."""
    vm = fleet.vms[name]
    tokens = [f"hypervisor:{vm.hypervisor}"]
    host = facts.hosts.get(name)
    if host is None and vm.placement is not None and len(vm.placement.hosts) == 1:
        host = vm.placement.hosts[0]
    tokens += [f"host:{host}"] if host else []
    tokens += sorted({f"storage:{disk.storage}" for disk in vm.disks if disk.name in disks and disk.storage})
    return tuple(tokens)


def size_of(fleet: Fleet, facts: Facts, name: str, component: str) -> int:
    """Return the bytes that a component is expected to hold.

    The last recovery point knows best; whole disks count with what they have allocated, or could
    hold; files and databases that were never saved count as nothing, because nobody knows.
    """
    key = f"{name}/{component}"
    if key in facts.saved:
        return facts.saved[key]
    vm = fleet.vms[name]
    whole = component == Kind.OS or (
        kind_of(component) is Kind.FILESYSTEMS
        and vm.components.filesystems[component.partition(".")[2]].path is None
    )
    if not whole:
        return 0
    chosen = disks_of(vm, component)
    return sum(
        facts.allocated.get(f"{name}/{disk.name}", disk.size) for disk in vm.disks if disk.name in chosen
    )


def moving(facts: Facts, size: int, rate: float) -> Estimate:
    """Return the estimate of a step that moves *size* bytes at *rate* bytes a second."""
    return Estimate(facts.rates.call + size / rate, size)


def sending(fleet: Fleet, facts: Facts, size: int) -> Estimate:
    """Return the estimate of a step that sends *size* bytes to a store."""
    return moving(facts, size, min(facts.rates.upload, fleet.bandwidth or facts.rates.upload))


def calling(facts: Facts) -> Estimate:
    """Return the estimate of a step that moves no data."""
    return Estimate(facts.rates.call)
