"""VMs of a drill: alone in a network of their own on one host, and marked.

    host ── virtual switch vmkeep-1a2b3c4d, without uplinks ── port group vmkeep-drill-20260101T0100...
                                                                └ the VMs of the drill

Virtual switches without uplinks end at their host, so all VMs of a drill are made on that one.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from typing import TYPE_CHECKING, Any, Final

from pyVmomi import vim

from vmkeep.errors import InputError, NotFoundError, SourceError
from vmkeep.hypervisors.drilled import is_named_by, orphan, require_mark
from vmkeep.hypervisors.vsphere import restoring
from vmkeep.hypervisors.vsphere.places import free_memory, is_usable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.hypervisors.base import Orphan
    from vmkeep.hypervisors.vsphere.holder import Holders
    from vmkeep.hypervisors.vsphere.places import Places

_PORTS: Final = 128
_SWITCHES: Final = "networkInfo.vswitch"
_GROUPS: Final = "networkInfo.portgroup"


class Drill:
    """Makes and removes what drills need. Safe to use from several threads."""

    def __init__(self, places: Places, holders: Holders) -> None:
        self._places = places
        self._connection = places.connection
        self._holders = holders
        self._lock = threading.Lock()

    def isolate(self, drill: str) -> None:
        """Make the isolated network of a drill."""
        switch = _switch(drill)
        with self._lock:
            system = self._where(drill)
            if system is not None and self._has_group(system, drill):
                return
            if drill in self._places.networks():
                raise InputError(f"network {drill} was not made for a drill: it stays as it is")
            if system is None:
                system = self._roomiest()
                self._connection.call(
                    f"isolated network {drill}",
                    lambda: system.AddVirtualSwitch(
                        vswitchName=switch, spec=vim.host.VirtualSwitch.Specification(numPorts=_PORTS)
                    ),
                )
            group = vim.host.PortGroup.Specification(
                name=drill, vlanId=0, vswitchName=switch, policy=vim.host.NetworkPolicy()
            )
            self._connection.call(f"isolated network {drill}", lambda: system.AddPortGroup(portgrp=group))

    def end_isolation(self, drill: str) -> None:
        """Remove the isolated network of a drill."""
        with self._lock:
            system = self._where(drill)
            if system is None:
                if drill in self._places.networks():
                    raise InputError(f"network {drill} was not made for a drill: it stays as it is")
                return
            what = f"isolated network {drill}"
            with contextlib.suppress(NotFoundError):
                self._connection.call(what, lambda: system.RemovePortGroup(pgName=drill))
            with contextlib.suppress(NotFoundError):
                self._connection.call(what, lambda: system.RemoveVirtualSwitch(vswitchName=_switch(drill)))

    def remove(self, name: str, drill: str) -> None:
        """Remove a VM of the drill with the disks that were made for it."""
        self._holders.clear(name, None)
        there = self._places.find(name)
        if there is None:
            return
        machine = self._places.machine(there)
        require_mark(name, machine.extra.get(restoring.DRILL), drill)
        made = {*restoring.made(machine.extra)}
        strangers = [disk.file for disk in machine.disks if [*disk.files][-1] not in made]
        if strangers:
            raise SourceError(
                f"VM {name} was made for a drill, and has a disk now that was not: {strangers[0]}; "
                "take it away from the VM, then remove the VM in vCenter"
            )
        if machine.running:
            self._connection.run(f"VM {name}: powering off", there.PowerOffVM_Task)
        for file in restoring.replaced(machine.extra):
            self._holders.delete(file)
        self._connection.run(f"VM {name}: removing", there.Destroy_Task)

    def orphans(self) -> Iterator[Orphan]:
        """Yield VMs of drills whose makers do not run here any more."""
        for machine in self._places.machines().values():
            drill = machine.extra.get(restoring.DRILL, "")
            # A copy that somebody made of a drill's VM carries the mark, too, and is called otherwise.
            if is_named_by(machine.name, drill):
                yield from orphan(machine.extra.get(restoring.MAKER, ""), vm=machine.name, drill=drill)

    def _where(self, drill: str) -> Any:
        """Return the network system of the host that has the drill's switch, if one has it."""
        found = self._connection.all_of(
            vim.HostSystem, ["configManager.networkSystem"], below=self._places.datacenter
        )
        systems = [one["configManager.networkSystem"] for one in found.values() if one]
        for system, about in self._connection.props(systems, [_SWITCHES]).items():
            for switch in about.get(_SWITCHES, ()):
                if switch.name == _switch(drill) and not switch.pnic:
                    return system
        return None

    def _has_group(self, system: vim.host.NetworkSystem, drill: str) -> bool:
        groups = self._connection.prop(system, _GROUPS) or ()
        return any(one.spec.name == drill and one.spec.vswitchName == _switch(drill) for one in groups)

    def _roomiest(self) -> Any:
        """Return the network system of the host that reaches most datastores, and has most memory left."""
        paths = [
            "configManager.networkSystem", "datastore", "runtime.connectionState",
            "runtime.inMaintenanceMode", "summary.hardware.memorySize",
            "summary.quickStats.overallMemoryUsage",
        ]  # fmt: skip
        hosts = self._connection.all_of(vim.HostSystem, paths, below=self._places.datacenter)
        usable = [one for one in hosts.values() if is_usable(one)]
        if not usable:
            raise SourceError(f"no host at {self._connection} is connected, so no drill can run")
        best = max(usable, key=lambda one: (len(one.get("datastore", ())), free_memory(one)))
        return best["configManager.networkSystem"]


def _switch(drill: str) -> str:
    """Return the name of a drill's virtual switch, which may be 31 characters long."""
    return f"vmkeep-{zlib.crc32(drill.encode()):08x}"
