"""The fleet as a graph: who needs whom, and what each VM is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx

from vmkeep.fleet.model import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmkeep.fleet.model import VM, Components, Fleet


def graph(fleet: Fleet) -> nx.DiGraph[str]:
    """Return the VMs with an edge from each dependency to its dependent."""
    edges: nx.DiGraph[str] = nx.DiGraph()
    edges.add_nodes_from(fleet.vms)
    edges.add_edges_from((needed, name) for name, vm in fleet.vms.items() for needed in vm.depends_on)
    return edges


def dependencies(fleet: Fleet, vms: Iterable[str]) -> frozenset[str]:
    """Return *vms* and all that they depend on, directly or not."""
    edges = graph(fleet)
    return frozenset(name for vm in vms for name in {vm, *nx.ancestors(edges, vm)})


def dependents(fleet: Fleet, vms: Iterable[str]) -> frozenset[str]:
    """Return *vms* and all that depend on them, directly or not."""
    edges = graph(fleet)
    return frozenset(name for vm in vms for name in {vm, *nx.descendants(edges, vm)})


def waves(fleet: Fleet) -> tuple[tuple[str, ...], ...]:
    """Return the VMs in the order of their restore: each after all that it depends on."""
    return tuple(tuple(sorted(wave)) for wave in nx.topological_generations(graph(fleet)))


def dependencies_among(fleet: Fleet, vms: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return for each of *vms* those others of *vms* that it needs next, also through VMs that are not in it.

    With `web -> app -> db` and *vms* `web` and `db`, `web` needs `db`.
    """
    chosen = set(vms)
    direct: dict[str, frozenset[str]] = {}
    for name in nx.topological_sort(graph(fleet)):
        needed: set[str] = set()
        for dependency in fleet.vms[name].depends_on:
            needed |= {dependency} if dependency in chosen else direct[dependency]
        direct[name] = frozenset(needed)
    return {name: direct[name] for name in fleet.vms if name in chosen}


def component_names(vm: VM) -> list[str]:
    """Return the VM's components in the order of their restore: `os`, `filesystems.data`, ..."""
    return component_names_of(vm.components)


def component_names_of(components: Components) -> list[str]:
    """Return the names of *components*, as `component_names` does."""
    names = [Kind.OS.value] if components.os is not None else []
    for kind in (Kind.FILESYSTEMS, Kind.DATABASES, Kind.APPLICATIONS):
        names += [f"{kind.value}.{name}" for name in getattr(components, kind.value)]
    return names


def kind_of(component: str) -> Kind:
    """Return the kind of a component by its name: `databases.orders` is one of the databases."""
    return Kind(component.partition(".")[0])


def disks_of_os(vm: VM) -> tuple[str, ...]:
    """Return the disks that the VM's `os` component saves, in the order of their declaration.

    Those it names, or else all that no file system claims whole.
    """
    if vm.components.os is None:
        return ()
    if vm.components.os.disks is not None:
        chosen = set(vm.components.os.disks)
        return tuple(disk.name for disk in vm.disks if disk.name in chosen)
    claimed = whole_disks(vm.components).values()
    return tuple(disk.name for disk in vm.disks if disk.name not in claimed)


def whole_disks(components: Components) -> dict[str, str]:
    """Return the file systems that claim a whole disk, each with that disk."""
    return {
        name: filesystem.disk
        for name, filesystem in components.filesystems.items()
        if filesystem.disk is not None and filesystem.path is None
    }


def group_of(fleet: Fleet) -> dict[str, str]:
    """Return each VM's consistency group; a VM without one forms its own, called like itself."""
    groups = {name: name for name in fleet.vms}
    groups.update({vm: name for name, group in fleet.consistency_groups.items() for vm in group.vms})
    return groups
