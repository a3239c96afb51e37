"""What a failure takes with it, and what a recovery could lack: questions to the graph of a fleet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import networkx as nx

from vmkeep.fleet import dependents, graph

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Paradox:
    """Something that a recovery needs, and that lies inside the fleet it recovers."""

    vm: str
    needed_as: str
    """The key of the fleet file that names it."""


def blast_radius(fleet: Fleet, thing: str) -> frozenset[str]:
    """Return the VMs that stand still when *thing* fails: it, and all that depends on it.

    Args:
        thing: a VM, `hypervisor:NAME`, `host:NAME` (for VMs that may run nowhere else) or `storage:NAME`.
    """
    kind, colon, name = thing.partition(":")
    if not colon:
        return dependents(fleet, [thing])
    struck = [
        vm_name
        for vm_name, vm in fleet.vms.items()
        if (kind == "hypervisor" and vm.hypervisor == name)
        or (kind == "storage" and any(disk.storage == name for disk in vm.disks))
        or (kind == "host" and vm.placement is not None and vm.placement.hosts == (name,))
    ]
    return dependents(fleet, struck)


def bottlenecks(fleet: Fleet) -> dict[str, frozenset[str]]:
    """Return the VMs through which every chain of dependencies of others runs, each with those others.

    These are the dominators of the graph: until such a VM is healthy again, nothing behind it starts,
    by whichever of its dependencies one looks. Only VMs with something behind them are in it.
    """
    edges = graph(fleet)
    root = ""  # no VM has this name
    roots = [name for name in edges if edges.in_degree(name) == 0]
    edges.add_edges_from((root, name) for name in roots)
    tree: nx.DiGraph[str] = nx.DiGraph()
    tree.add_edges_from(
        (dominator, name)
        for name, dominator in nx.immediate_dominators(edges, root).items()
        if dominator is not None and name != dominator
    )
    return {name: behind for name in fleet.vms if (behind := frozenset(nx.descendants(tree, name)))}


def paradoxes(fleet: Fleet) -> list[Paradox]:
    """Return what the recovery needs from inside the fleet: the store, the vCenter, by their addresses."""
    names = {name.lower(): name for name in fleet.vms}
    return [
        Paradox(names[host.partition(".")[0].lower()], key)
        for host, key in _addresses(fleet)
        if host.partition(".")[0].lower() in names
    ]


def _addresses(fleet: Fleet) -> Iterator[tuple[str, str]]:
    s3 = fleet.repository.s3
    if s3 is not None and s3.endpoint_url is not None:
        yield urlsplit(s3.endpoint_url).hostname or "", "repository.s3.endpoint_url"
    for name, config in fleet.hypervisors.items():
        if config.driver == "vsphere":
            yield config.host.partition(":")[0], f"hypervisors.{name}.host"
        elif config.driver == "libvirt":
            yield urlsplit(config.uri).hostname or "", f"hypervisors.{name}.uri"
