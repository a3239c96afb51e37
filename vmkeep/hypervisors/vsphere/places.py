"""Where VMs can be: the datacenter, its clusters and hosts, datastores and networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pyVmomi import vim

from vmkeep.errors import InputError, NotFoundError, SourceError
from vmkeep.hypervisors.vsphere.captured import datastore_of, path_of
from vmkeep.hypervisors.vsphere.machine import PATHS, Machine, plain, read
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from vmkeep.hypervisors.vsphere.connection import Connection

HOLDER: Final = "vmkeep.holder"
"""What marks a VM that only holds new disks until they are in place (see `restore`)."""
_NETWORK: Final = vim.vm.device.VirtualEthernetCard
_STORE: Final = (
    "name", "summary.capacity", "summary.freeSpace", "summary.accessible", "summary.maintenanceMode",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a VM is made."""

    pool: vim.ResourcePool
    host: vim.HostSystem | None
    datastore: str
    """For what has no place of its own."""
    datastores: frozenset[str]
    """All that its host or cluster reaches."""


class Places:
    """Looks things up. What a VM or a host is is never remembered, for others change it."""

    def __init__(self, connection: Connection, datacenter: str | None) -> None:
        self.connection = connection
        self._named = datacenter
        self._known: dict[str, vim.VirtualMachine] = {}
        self._datacenter: vim.Datacenter | None = None

    @property
    def datacenter(self) -> vim.Datacenter:
        """The datacenter that the fleet file names, or the only one.

        Raises:
            InputError: there is none of that name, or one must be named.
        """
        if self._datacenter is None:
            self._datacenter = self._find_datacenter()
        return self._datacenter

    def _find_datacenter(self) -> vim.Datacenter:
        found = self.connection.all_of(vim.Datacenter, ["name"])
        names = {plain(str(one["name"])): dc for dc, one in found.items() if "name" in one}
        if self._named is not None and self._named in names:
            return names[self._named]
        if self._named is None and len(names) == 1:
            return next(iter(names.values()))
        there = ", ".join(sorted(names)) or "none that this account sees"
        problem = f"there is no datacenter {self._named}" if self._named else "say which datacenter"
        raise InputError(f"{problem} at {self.connection} (there is: {there})")

    def datacenter_path(self) -> str:
        """Return where the datacenter is in the inventory, as requests for files name it."""
        names: list[str] = []
        entity: vim.ManagedEntity | None = self.datacenter
        while entity is not None:
            about = self.connection.props([entity], ["name", "parent"]).get(entity, {})
            if "parent" in about:  # all but the root
                names.insert(0, str(about["name"]))
            entity = about.get("parent")
        return "/".join(names)

    def machines(self) -> dict[vim.VirtualMachine, Machine]:
        """Return all VMs of the datacenter; neither templates nor what only holds disks for a restore."""
        datacenter = self.datacenter
        networks = self.network_keys(datacenter)
        found = self.connection.all_of(vim.VirtualMachine, PATHS, below=datacenter)
        read_all = {vm: read(one, networks) for vm, one in found.items() if "config.uuid" in one}
        return {
            vm: one
            for vm, one in read_all.items()
            if not one.config.get("template") and HOLDER not in one.extra
        }

    def files_in_use(self, *, but: vim.VirtualMachine | None = None) -> set[str]:
        """Return the files of the disks of all VMs and templates, but of one, as ``[datastore] path``."""
        found = self.connection.all_of(vim.VirtualMachine, ["config.hardware.device"], below=self.datacenter)
        machines = (read(one, {}) for vm, one in found.items() if vm != but)
        return {file for one in machines for disk in one.disks for file in disk.files}

    def find(self, name: str) -> vim.VirtualMachine | None:
        """Return a VM by its name.

        Raises:
            InputError: there are several.
        """
        known = self._known.get(name)
        if known is not None:
            now = self.connection.prop(known, "name")
            if now is not None and plain(str(now)) == name:
                return known
        below = self.datacenter
        found = self.connection.all_of(vim.VirtualMachine, ["name", "config.template"], below=below)
        ours = [
            vm for vm, one in found.items()
            if plain(str(one.get("name", ""))) == name and not one.get("config.template")
        ]  # fmt: skip
        if len(ours) > 1:
            raise InputError(
                f"VM {name}: there are {len(ours)} VMs of that name at {self.connection}: rename all but one"
            )
        if not ours:
            self._known.pop(name, None)
            return None
        self._known[name] = ours[0]
        return ours[0]

    def require(self, name: str) -> vim.VirtualMachine:
        """Return a VM by its name.

        Raises:
            SourceError: there is none.
        """
        vm = self.find(name)
        if vm is None:
            raise SourceError(f"VM {name} does not exist at {self.connection}; `vmkeep configure` creates it")
        return vm

    def machine(self, vm: vim.VirtualMachine) -> Machine:
        """Return what a VM is now.

        Raises:
            SourceError: it is gone, or vSphere does not know what it is.
        """
        found = self.connection.props([vm], PATHS).get(vm, {})
        name = plain(str(found.get("name", "")))
        if "config.hardware.device" not in found:
            state = found.get("runtime.connectionState", "gone")
            raise SourceError(
                f"VM {name or 'that was there'}: vSphere does not say what it is: it is {state}"
            )
        return read(found, self.network_keys() if _has_keys(found) else {})

    def network_keys(self, datacenter: vim.Datacenter | None = None) -> dict[str, str]:
        """Return the names of distributed port groups, by their keys, and of opaque networks by their ids."""
        below = datacenter or self.datacenter
        found = self.connection.all_of(vim.dvs.DistributedVirtualPortgroup, ["name", "key"], below=below)
        return {str(one["key"]): plain(str(one["name"])) for one in found.values() if "key" in one}

    def networks(self) -> dict[str, vim.Network]:
        """Return the networks that cards can be on, by name; not the uplinks of distributed switches."""
        found = self.connection.all_of(vim.Network, ["name"], below=self.datacenter)
        groups = [one for one in found if isinstance(one, vim.dvs.DistributedVirtualPortgroup)]
        uplinks = {
            one
            for one, about in self.connection.props(groups, ["name"]).items()
            if "-DVUplinks-" in str(about.get("name", ""))
        }
        return {plain(str(about["name"])): one for one, about in found.items() if one not in uplinks}

    def require_networks(self, names: Collection[str]) -> dict[str, vim.Network]:
        """Return the networks; all that there are, by name.

        Raises:
            InputError: one is not there; says which there are.
        """
        known = self.networks()
        for name in names:
            if name not in known:
                there = ", ".join(sorted(known)) or "none"
                raise InputError(
                    f"there is no network {name} at {self.connection} (there is: {there}): "
                    "make a port group of that name in vCenter, or name another"
                )
        return known

    def card_backing(self, network: vim.Network, name: str) -> vim.vm.device.VirtualDevice.BackingInfo:
        """Return what attaches a card to a network."""
        if isinstance(network, vim.dvs.DistributedVirtualPortgroup):
            about = self.connection.props([network], ["key", "config.distributedVirtualSwitch"])[network]
            switch = about["config.distributedVirtualSwitch"]
            port = vim.dvs.PortConnection(
                portgroupKey=about["key"], switchUuid=self.connection.prop(switch, "uuid")
            )
            return _NETWORK.DistributedVirtualPortBackingInfo(port=port)
        if isinstance(network, vim.OpaqueNetwork):
            about = self.connection.props([network], ["summary"])[network]["summary"]
            return _NETWORK.OpaqueNetworkBackingInfo(
                opaqueNetworkId=about.opaqueNetworkId, opaqueNetworkType=about.opaqueNetworkType
            )
        return _NETWORK.NetworkBackingInfo(deviceName=name)

    def datastores(self) -> dict[str, dict[str, Any]]:
        """Return the datastores that can be written, by name, with their properties and `object`."""
        found = self.connection.all_of(vim.Datastore, _STORE, below=self.datacenter)
        return {
            plain(str(one["name"])): {**one, "object": store}
            for store, one in found.items()
            if one.get("summary.accessible", True)
            and one.get("summary.maintenanceMode", "normal") == "normal"
        }

    def require_datastore(self, name: str) -> None:
        """Check that a datastore is there.

        Raises:
            InputError: it is not; says which there are.
        """
        known = self.datastores()
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise InputError(f"there is no storage {name} at {self.connection} (there is: {there})")

    def find_iso(self, iso: str) -> str:
        """Return where an image for an optical drive lies, as ``[datastore] path``.

        Args:
            iso: That, or the end of its path, such as its name.

        Raises:
            InputError: it is not there, or there are several.
        """
        name = iso.rpartition("/")[2].rpartition("] ")[2]
        wanted = iso if iso.startswith("[") else f"/{iso.lstrip('/')}"
        stores = self.datastores()
        found = []
        for store, about in sorted(stores.items()):
            if not iso.startswith("[") or datastore_of(iso) == store:
                found += self._files(store, about["object"], name)
        matching = [one for one in found if one == wanted or f"/{path_of(one)}".endswith(wanted)]
        if len(matching) == 1:
            return matching[0]
        there = ", ".join(matching or found)
        told = f"there are several: {there}" if matching else f"it is in none of {', '.join(sorted(stores))}"
        raise InputError(
            f"iso {iso}: {told}; write '[datastore] path', or upload it with 'govc datastore.upload'"
        )

    def _files(self, store: str, datastore: vim.Datastore, name: str) -> list[str]:
        """Return the files of a name in a datastore."""
        browser = self.connection.prop(datastore, "browser")
        spec = vim.host.DatastoreBrowser.SearchSpec(matchPattern=[name])
        try:
            results = self.connection.run(
                f"looking for {name} in {store}",
                lambda: browser.SearchDatastoreSubFolders_Task(datastorePath=f"[{store}]", searchSpec=spec),
            )
        except NotFoundError:
            return []
        return [
            f"[{store}] {'/'.join(filter(None, [path_of(one.folderPath).strip('/'), file.path]))}"
            for one in results or ()
            for file in one.file
        ]

    def spot(
        self,
        *,
        datastores: Sequence[str] = (),
        networks: Collection[vim.Network] = (),
        hosts: Collection[str] = (),
        preferred: Sequence[str] = (),
        pinned: bool = False,
    ) -> Spot:
        """Return where a new VM can be made.

        Args:
            datastores: Those that it must reach, by name.
            networks: Those that it must be on.
            hosts: The hosts that it may run on, by name; by default vSphere chooses.
            preferred: Datastores for what has no place of its own, the best first, if they can be reached;
                by default the one with the most room.
            pinned: Whether the VM is made on the one host that was looked at.

        Raises:
            InputError: there is no such place.
        """
        stores = self.datastores()
        by_object = {one["object"]: name for name, one in stores.items()}
        whole = self.connection.all_of(
            vim.ComputeResource,
            ["name", "resourcePool", "datastore", "network", "host"],
            below=self.datacenter,
        )
        balanced = {
            cluster
            for cluster, about in self.connection.all_of(
                vim.ClusterComputeResource, ["configuration.drsConfig.enabled"], below=self.datacenter
            ).items()
            if about.get("configuration.drsConfig.enabled")
        }
        for resource, about in whole.items():
            for host, reach in self._hosts(about.get("host", ()), hosts):
                names = {by_object[one] for one in reach.get("datastore", ()) if one in by_object}
                if not names.issuperset(datastores) or not {*reach.get("network", ())}.issuperset(networks):
                    continue
                if not names:
                    continue
                best = max(names, key=lambda name: int(stores[name].get("summary.freeSpace", 0)))
                chosen = next((one for one in preferred if one in names), best)
                # Without DRS vSphere does not choose a host by itself.
                free = resource in balanced and not hosts and not pinned
                return Spot(about["resourcePool"], None if free else host, chosen, frozenset(names))
        where = f"no host at {self.connection} that is connected"
        wanted = [*(f"storage {one}" for one in datastores), *sorted(hosts)]
        reaches = (
            f" reaches all of {', '.join(wanted)} and its networks" if wanted else " reaches its networks"
        )
        raise InputError(f"{where}{reaches}: a VM cannot be made there")

    def _hosts(
        self, hosts: Collection[Any], names: Collection[str]
    ) -> list[tuple[vim.HostSystem, Mapping[str, Any]]]:
        """Return the hosts that VMs can be on, of these names if there are any, the roomiest first."""
        paths = [
            "name", "datastore", "network", "runtime.connectionState", "runtime.inMaintenanceMode",
            "summary.hardware.memorySize", "summary.quickStats.overallMemoryUsage",
        ]  # fmt: skip
        found: dict[Any, dict[str, Any]] = {**self.connection.props(hosts, paths)}
        usable = [
            (host, about)
            for host, about in found.items()
            if (not names or plain(str(about.get("name", ""))) in names) and is_usable(about)
        ]
        return sorted(usable, key=lambda pair: free_memory(pair[1]), reverse=True)


def is_usable(host: Mapping[str, Any]) -> bool:
    """Tell whether VMs can be on a host: it is connected, and not in maintenance."""
    return host.get("runtime.connectionState", "connected") == "connected" and not host.get(
        "runtime.inMaintenanceMode", False
    )


def free_memory(host: Mapping[str, Any]) -> int:
    """Return the bytes of memory that a host has left."""
    used = int(host.get("summary.quickStats.overallMemoryUsage", 0)) * MiB
    return max(0, int(host.get("summary.hardware.memorySize", 0)) - used)


def _has_keys(found: Mapping[str, Any]) -> bool:
    """Tell whether a VM has cards on networks that are known by a key alone."""
    return any(
        isinstance(one, vim.vm.device.VirtualEthernetCard)
        and not isinstance(one.backing, _NETWORK.NetworkBackingInfo)
        for one in found.get("config.hardware.device", ())
    )
