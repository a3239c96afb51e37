"""VMs that exist, in the words of the fleet file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmkeep.errors import InputError, NotFoundError
from vmkeep.fleet.model import NAMES, is_name
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.units import exact_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from vmkeep.fleet.model import HypervisorConfig
    from vmkeep.hypervisors.base import Found

_LIKE: Final = {"cpus": 1, "memory": "1GiB", "firmware": "bios", "networks": [], "iso": None}
"""What a VM is when neither it nor the defaults say anything. See: `vmkeep.fleet.model.VM`."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What is to be written, and what is not."""

    vms: Mapping[str, Mapping[str, Any]]
    """The section of each VM, in the order of the fleet file's reference."""
    left_out: Mapping[str, str]
    """Why others are not: by VM, or `hypervisor/VM`."""


def find(
    hypervisors: Mapping[str, HypervisorConfig],
    base: Path,
    names: Sequence[str],
    *,
    declared: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Imported:
    """Look at hypervisors, and describe the VMs that the fleet does not declare yet.

    Args:
        base: the folder of the fleet file.
        names: the VMs; none means all.
        declared: the VMs that are in the fleet file.
        defaults: the fleet file's own `defaults`, as they stand there: what they say is not said again.

    Raises:
        InputError: a VM cannot be taken over, or there are two of that name.
        NotFoundError: there is no such VM.
    """
    given = dict(defaults or {})
    if "memory" in given:
        given["memory"] = exact_size(parse_size(given["memory"]))
    chosen: dict[str, tuple[str, Found]] = {}
    left_out: dict[str, str] = {}
    for place, one in _all(hypervisors, base):
        name = one.definition.name
        if names and name not in names:
            continue
        if name in chosen:
            raise InputError(
                f"there is a VM {name} at {chosen[name][0]} and at {place}: say which with --hypervisor"
            )
        problem = _problem(one, declared)
        if problem and names:
            raise InputError(problem)
        if problem:
            left_out[name] = problem
        else:
            chosen[name] = (place, one)
    missing = sorted(set(names) - set(chosen))
    if missing:
        raise NotFoundError(f"there is no VM {', '.join(missing)} at {', '.join(hypervisors)}")
    return Imported({name: _section(one, place, given) for name, (place, one) in chosen.items()}, left_out)


def _all(hypervisors: Mapping[str, HypervisorConfig], base: Path) -> Iterator[tuple[str, Found]]:
    for place, config in hypervisors.items():
        for one in open_hypervisor(place, config, base).inventory():
            yield place, one


def _problem(one: Found, declared: Collection[str]) -> str:
    name = one.definition.name
    if name in declared:
        return f"VM {name} is in the fleet file already: 'vmkeep configure {name}' compares it"
    if not is_name(name):
        return f"VM {name}: rename it first: {NAMES}"
    strange = [disk.name for disk in one.definition.disks if not is_name(disk.name)]
    if strange:
        return f"VM {name}: disk {strange[0]}: rename the image: {NAMES}"
    return one.remark


def _section(one: Found, place: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the fleet file says of a VM; nothing that it says already, or that goes without saying."""
    machine = one.definition
    said: dict[str, Any] = {
        "hypervisor": place,
        "cpus": machine.cpus,
        "memory": exact_size(machine.memory),
        "firmware": machine.firmware,
        "iso": machine.iso,
        "networks": [card.network for card in machine.networks],
    }
    section = {key: value for key, value in said.items() if value != {**_LIKE, **defaults}.get(key)}
    if section.get("iso", "") is None:  # the defaults have one, which cannot be taken back
        del section["iso"]
    section["disks"] = [_disk(one, index) for index in range(len(machine.disks))]
    if one.agent and "guest" not in defaults:
        section["guest"] = {"agent": True}
    return section


def _disk(one: Found, index: int) -> dict[str, Any]:
    disk = one.definition.disks[index]
    entry: dict[str, Any] = {"name": disk.name, "size": exact_size(disk.size)}
    if disk.format != "qcow2":
        entry["format"] = disk.format
    storage = one.storages.get(disk.name)
    if storage not in {None, "default"}:
        entry["storage"] = storage
    return entry
