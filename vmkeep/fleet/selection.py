"""Which VMs and components an operation is about."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vmkeep.errors import InputError
from vmkeep.fleet import topology
from vmkeep.fleet.model import Kind
from vmkeep.fleet.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmkeep.fleet.model import Fleet


@dataclass(frozen=True, slots=True)
class Selection:
    """Components by VM, both in the order of the fleet file and of restore."""

    components: Mapping[str, tuple[str, ...]]

    @property
    def vms(self) -> tuple[str, ...]:
        """The VMs that have at least one selected component."""
        return tuple(self.components)

    def __len__(self) -> int:
        return sum(len(names) for names in self.components.values())


def select(
    fleet: Fleet,
    vms: Sequence[str] | None = None,
    components: Sequence[str] | None = None,
    *,
    with_dependencies: bool = False,
    with_dependents: bool = False,
) -> Selection:
    """Return what *vms* and *components* name.

    Args:
        vms: targets: `db1`, `db1/databases`, `db1/databases.orders`; a VM may be a pattern such as
            `web*`. `None` or empty means all.
        components: kinds (`databases`) or names (`databases.orders`) to which all targets are
            narrowed. `None` or empty means all.
        with_dependencies: also all that the targets depend on, whole (narrowed by *components*).
        with_dependents: also all that depends on the targets, in the same way.

    Raises:
        InputError: a target, kind or component is unknown, or nothing is left.
    """
    chosen: dict[str, set[str]] = {}
    for target in vms or fleet.vms:
        for name, names in _targeted(fleet, target).items():
            chosen.setdefault(name, set()).update(names)
    more: set[str] = set()
    if with_dependencies:
        more |= topology.dependencies(fleet, chosen)
    if with_dependents:
        more |= topology.dependents(fleet, chosen)
    for name in more - set(chosen):
        chosen[name] = set(topology.component_names(fleet.vms[name]))
    selection = _narrowed(fleet, chosen, components or ())
    if not selection.components:
        what = ", ".join([*(vms or ()), *(components or ())])
        raise InputError(f"nothing to do: no component matches {what or 'an empty fleet'}")
    return selection


def _targeted(fleet: Fleet, target: str) -> dict[str, list[str]]:
    """Return the components that one target names, by VM."""
    pattern, slash, part = target.partition("/")
    names = [name for name in fleet.vms if name == pattern]
    if not names and set(pattern) & set("*?["):
        names = [name for name in fleet.vms if fnmatchcase(name, pattern)]
    if not names:
        raise InputError(f"there is no VM {pattern!r} in fleet {fleet.fleet}{suggestion(pattern, fleet.vms)}")
    declared = {name: topology.component_names(fleet.vms[name]) for name in names}
    if not slash:
        return declared
    found = {name: [one for one in all_of_it if _matches(one, part)] for name, all_of_it in declared.items()}
    if not any(found.values()):
        known = sorted({one for all_of_it in declared.values() for one in all_of_it})
        raise InputError(f"VM {pattern} has no component {part!r}{suggestion(part, known)}")
    return found


def _narrowed(fleet: Fleet, chosen: Mapping[str, set[str]], components: Sequence[str]) -> Selection:
    known = {name for vm in fleet.vms.values() for name in topology.component_names(vm)}
    for component in components:
        if component not in set(Kind) and component not in known:
            hint = suggestion(component, dict.fromkeys([*Kind, *sorted(known)]))
            raise InputError(f"there is no component or kind {component!r} in fleet {fleet.fleet}{hint}")
    kept: dict[str, tuple[str, ...]] = {}
    for name, vm in fleet.vms.items():
        left = tuple(
            one
            for one in topology.component_names(vm)
            if one in chosen.get(name, ())
            and (not components or any(_matches(one, part) for part in components))
        )
        if left:
            kept[name] = left
    return Selection(kept)


def _matches(component: str, part: str) -> bool:
    return component == part or component.partition(".")[0] == part
