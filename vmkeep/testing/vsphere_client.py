"""A plain client of vSphere for tests: what an administrator does beside vmkeep."""

from __future__ import annotations

import http.client
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl

from vmkeep.testing.vsphere import DATACENTER
from vmkeep.units import MiB

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

    from vmkeep.testing.vsphere import Simulator

_WAIT_S: Final = 60.0
_POLL_S: Final = 0.005


class Client:
    """A session with a vSphere server."""

    def __init__(self, server: Simulator) -> None:
        self.host, _, port = server.host.partition(":")
        self.port = int(port)
        self.tls: ssl.SSLContext = server.tls
        self.service = SmartConnect(
            host=self.host, port=self.port, user=server.user, pwd=server.password, sslContext=self.tls
        )
        self.content = self.service.RetrieveContent()
        self.datacenter = self._find(vim.Datacenter)[0]
        self.cluster = self._find(vim.ClusterComputeResource)[0]

    def close(self) -> None:
        """Log out."""
        Disconnect(self.service)
        self.service._stub.DropConnections()  # noqa: SLF001  (it keeps them for another call)

    def _find(self, kind: type) -> Sequence[Any]:
        view = self.content.viewManager.CreateContainerView(self.content.rootFolder, [kind], True)
        return list(view.view)

    # --- reading

    def properties(self, of: Any, *paths: str) -> Mapping[str, Any]:
        """Return properties of an object; unset ones are not among them."""
        query = vmodl.query.PropertyCollector
        found = self.content.propertyCollector.RetrievePropertiesEx(
            [
                query.FilterSpec(
                    objectSet=[query.ObjectSpec(obj=of)],
                    propSet=[query.PropertySpec(type=type(of), pathSet=list(paths))],
                )
            ],
            query.RetrieveOptions(),
        )
        return {one.name: one.val for one in found.objects[0].propSet}

    def wait(self, task: Any) -> Any:
        """Return the result of a task.

        Raises:
            vmodl.MethodFault: the fault that it ended with.
        """
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline:
            has = self.properties(task, "info.state", "info.result", "info.error")
            if has["info.state"] == "success":
                return has.get("info.result")
            if has["info.state"] == "error":
                raise has["info.error"]
            time.sleep(_POLL_S)
        raise TimeoutError(task)

    def vm(self, name: str) -> Any:
        """Return a VM."""
        return next(vm for vm in self._find(vim.VirtualMachine) if vm.name == name)

    def disks(self, of: Any) -> Sequence[Any]:
        """Return the disks of a VM or a snapshot."""
        devices = self.properties(of, "config.hardware.device")["config.hardware.device"]
        return [device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]

    # --- machines

    def spec(
        self,
        name: str,
        disks: Sequence[int] = (4 * MiB,),
        *,
        network: str = "lan",
        datastore: str = "vmfs1",
        tracked: bool = True,
    ) -> Any:
        """Return the specification of a VM with new disks of some sizes in bytes."""
        kinds = vim.vm.device
        devices = [
            kinds.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing"),
            kinds.VirtualVmxnet3(
                key=-2,
                backing=kinds.VirtualEthernetCard.NetworkBackingInfo(deviceName=network),
                addressType="generated",
            ),
        ]
        changes = [vim.vm.device.VirtualDeviceSpec(operation="add", device=device) for device in devices]
        changes += [self.new_disk(size, number, datastore) for number, size in enumerate(disks)]
        return vim.vm.ConfigSpec(
            name=name,
            guestId="debian11_64Guest",
            numCPUs=2,
            memoryMB=512,
            files=vim.vm.FileInfo(vmPathName=f"[{datastore}]"),
            changeTrackingEnabled=tracked,
            deviceChange=changes,
        )

    def new_disk(self, size: int, unit: int, datastore: str = "vmfs1", *, controller: int = -1) -> Any:
        """Return the change that adds an empty disk."""
        disk = vim.vm.device.VirtualDisk(
            key=-10 - unit,
            controllerKey=controller,
            unitNumber=unit,
            capacityInKB=size // 1024,
            backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=f"[{datastore}]", diskMode="persistent", thinProvisioned=True
            ),
        )
        return vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)

    def create(self, name: str, disks: Sequence[int] = (4 * MiB,), **options: Any) -> Any:
        """Make a VM; see `spec`."""
        return self.wait(
            self.datacenter.vmFolder.CreateVM_Task(
                config=self.spec(name, disks, **options), pool=self.cluster.resourcePool
            )
        )

    def reconfigure(self, vm: Any, **spec: Any) -> None:
        """Change a VM."""
        self.wait(vm.ReconfigVM_Task(spec=vim.vm.ConfigSpec(**spec)))

    def snapshot(self, vm: Any, name: str = "snapshot", *, quiesce: bool = False) -> Any:
        """Take a snapshot without memory."""
        return self.wait(vm.CreateSnapshot_Task(name=name, description="", memory=False, quiesce=quiesce))

    def remove(self, snapshot: Any) -> None:
        """Remove a snapshot; its children stay."""
        self.wait(snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True))

    def changed(self, vm: Any, snapshot: Any, change_id: str, disk: int = 0) -> Sequence[tuple[int, int]]:
        """Return offset and length of all areas that changed since; ``*`` is for all that hold data."""
        device = self.disks(snapshot)[disk]
        areas, offset = [], 0
        while offset < device.capacityInBytes:
            page = vm.QueryChangedDiskAreas(snapshot, device.key, offset, change_id)
            areas += [(area.start, area.length) for area in page.changedArea]
            offset = page.startOffset + page.length
        return areas

    # --- data

    def ready(self, lease: Any) -> Any:
        """Return what a lease has once it is ready."""
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline:
            has = self.properties(lease, "state", "info", "error")
            if has["state"] == "ready":
                return has["info"]
            if has["state"] == "error":
                raise has["error"]
            time.sleep(_POLL_S)
        raise TimeoutError(lease)

    def exchange(
        self, verb: str, url: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send a request for data, with the cookie of the session; return status and content."""
        parts = urllib.parse.urlsplit(url)
        connection = http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=_WAIT_S)
        cookie = {"Cookie": self.service._stub.cookie.split(";")[0]}  # noqa: SLF001  (pyVmomi has no other way)
        try:
            where = f"{parts.path}?{parts.query}" if parts.query else parts.path
            connection.request(verb, where, body=body, headers={**cookie, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def folder(
        self, verb: str, file: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send a request for a file, as ``[vmfs1] a/b``, of a datastore."""
        store, _, path = file.removeprefix("[").partition("] ")
        query = urllib.parse.urlencode({"dcPath": DATACENTER, "dsName": store})
        return self.exchange(verb, f"/folder/{urllib.parse.quote(path)}?{query}", body, headers=headers)
