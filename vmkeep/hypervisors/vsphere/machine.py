"""A VM of vSphere as vmkeep sees it, read from its configuration, or from that of a snapshot.

Disks are called as the fleet file calls them. VMs that vmkeep made say so themselves, by the disk's place,
which stays the same when a snapshot gives the disk another file:

    vmkeep.disk.scsi0:0 = "root"        in the VM's extraConfig

Disks of other VMs are called by their place in order: `disk1`, `disk2`, ...
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from pyVmomi import vim

from vmkeep.hypervisors.vsphere.captured import Captured, Controller, VsphereCard, VsphereDisk
from vmkeep.units import KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DISK: Final = "vmkeep.disk."
"""Before the place of a disk: its name."""
OURS: Final = "vmkeep."
_CONFIG: Final = (
    "name", "uuid", "template", "annotation", "extraConfig", "changeTrackingEnabled", "firmware", "guestId",
    "version", "hardware.numCPU", "hardware.numCoresPerSocket", "hardware.memoryMB", "hardware.device",
    "bootOptions.efiSecureBootEnabled",
)  # fmt: skip
PATHS: Final = (
    "name", *(f"config.{one}" for one in _CONFIG), "runtime.powerState", "runtime.connectionState",
    "snapshot", "guest.toolsRunningStatus",
)  # fmt: skip
"""What `read` needs of a VM."""
SNAPSHOT_PATHS: Final = tuple(f"config.{one}" for one in _CONFIG)
"""What it needs of a snapshot."""

# What the driver names a controller, in the order in which one is chosen when nothing is said.
CONTROLLERS: Final[dict[str, type[vim.vm.device.VirtualController]]] = {
    "pvscsi": vim.vm.device.ParaVirtualSCSIController,
    "lsisas": vim.vm.device.VirtualLsiLogicSASController,
    "lsilogic": vim.vm.device.VirtualLsiLogicController,
    "buslogic": vim.vm.device.VirtualBusLogicController,
    "ahci": vim.vm.device.VirtualAHCIController,
    "nvme": vim.vm.device.VirtualNVMEController,
    "ide": vim.vm.device.VirtualIDEController,
}
BUSES: Final = {"ahci": "sata", "nvme": "nvme", "ide": "ide"}
"""How the bus of a controller is called in a place; of all others `scsi`."""
CARDS: Final[dict[str, type[vim.vm.device.VirtualEthernetCard]]] = {
    "vmxnet3": vim.vm.device.VirtualVmxnet3,
    "e1000e": vim.vm.device.VirtualE1000e,
    "e1000": vim.vm.device.VirtualE1000,
    "vmxnet2": vim.vm.device.VirtualVmxnet2,
    "pcnet32": vim.vm.device.VirtualPCNet32,
    "sriov": vim.vm.device.VirtualSriovEthernetCard,
}
_KNOWN: Final = (
    vim.vm.device.VirtualDisk, vim.vm.device.VirtualEthernetCard, vim.vm.device.VirtualController,
    vim.vm.device.VirtualCdrom, vim.vm.device.VirtualFloppy, vim.vm.device.VirtualKeyboard,
    vim.vm.device.VirtualPointingDevice, vim.vm.device.VirtualVideoCard, vim.vm.device.VirtualVMCIDevice,
    vim.vm.device.VirtualSoundCard,
)  # fmt: skip
"""Devices that a VM that is created again has, too."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a VM."""

    name: str
    place: str
    device: vim.vm.device.VirtualDisk

    @property
    def key(self) -> int:
        """What calls about the disk name it by."""
        return int(self.device.key)

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.device.capacityInBytes or self.device.capacityInKB * KiB)

    @property
    def file(self) -> str:
        """Its file as ``[datastore] path``; of a chain the newest."""
        return str(getattr(self.device.backing, "fileName", "") or "")

    @property
    def uuid(self) -> str:
        """What stays the same for the life of the disk."""
        return str(getattr(self.device.backing, "uuid", None) or "")

    @property
    def change_id(self) -> str:
        """What later changes are asked by; empty: they are not tracked."""
        return str(getattr(self.device.backing, "changeId", None) or "")

    @property
    def files(self) -> Iterator[str]:
        """All files of its chain, the newest first."""
        backing: Any = self.device.backing
        while backing is not None:
            yield str(backing.fileName)
            backing = getattr(backing, "parent", None)

    @property
    def mode(self) -> str:
        """Whether snapshots hold it, such as `persistent`."""
        return str(getattr(self.device.backing, "diskMode", "") or "persistent")

    @property
    def unsaved(self) -> str:
        """Why snapshots leave it out; empty: they do not."""
        backing = self.device.backing
        if self.mode.startswith("independent"):
            return f"it is {self.mode}, so snapshots leave it out: make it persistent"
        if isinstance(backing, vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo):
            if backing.compatibilityMode == "physicalMode":
                return "it is a raw device in physical mode, so snapshots leave it out"
            return ""
        if getattr(backing, "sharing", None) == "sharingMultiWriter":
            return "other VMs write it, too, so it has no snapshots"
        return ""


@dataclass(frozen=True, slots=True)
class Card:
    """A network card of a VM."""

    network: str
    """The name of its network, or a key that is none any more."""
    device: vim.vm.device.VirtualEthernetCard


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM."""

    name: str
    config: Mapping[str, Any]
    """Its properties, by path below `config`."""
    disks: tuple[Disk, ...]
    cards: tuple[Card, ...]
    iso: str | None
    running: bool
    tools: bool
    """Whether VMware tools run in the guest."""
    named: bool
    """Whether vmkeep gave its disks their names."""
    extra: Mapping[str, str] = field(default_factory=dict)
    snapshots: tuple[vim.vm.SnapshotTree, ...] = ()
    """All of its snapshots, a parent before its children."""

    def disk(self, name: str) -> Disk | None:
        """Return the disk of that name."""
        return next((disk for disk in self.disks if disk.name == name), None)

    @property
    def devices(self) -> list[vim.vm.device.VirtualDevice]:
        """All its devices."""
        return [*self.config.get("hardware.device", ())]

    @property
    def cpus(self) -> int:
        """Virtual processors."""
        return int(self.config.get("hardware.numCPU", 1))

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.config.get("hardware.memoryMB", 1)) * MiB

    @property
    def places(self) -> dict[str, str]:
        """The place of each disk that has a name, also of one that is not there yet."""
        return {name: key.removeprefix(DISK) for key, name in self.extra.items() if key.startswith(DISK)}

    @property
    def strange(self) -> list[str]:
        """The devices that a VM that is created again would lack."""
        return [
            str(one.deviceInfo.label if one.deviceInfo else type(one).__name__)
            for one in self.devices
            if not isinstance(one, _KNOWN)
        ]

    def captured(self) -> Captured:
        """Return all that is needed to create it again."""
        known = {key: value for key, value in self.extra.items() if not key.startswith(OURS)}
        return Captured(
            name=self.name,
            uuid=str(self.config.get("uuid", "")),
            cpus=self.cpus,
            memory=self.memory,
            firmware="uefi" if self.config.get("firmware") == "efi" else "bios",
            iso=self.iso,
            networks=tuple(_captured_card(card) for card in self.cards),
            disks=tuple(_captured_disk(disk) for disk in self.disks),
            controllers=tuple(_controllers(self.devices)),
            guest=str(self.config.get("guestId") or "otherLinux64Guest"),
            hardware=str(self.config.get("version") or ""),
            cores=int(self.config.get("hardware.numCoresPerSocket") or 1),
            secure_boot=bool(self.config.get("bootOptions.efiSecureBootEnabled")),
            notes=str(self.config.get("annotation") or ""),
            extra={key: value for key, value in known.items() if _is_kept(key)},
        )


def read(found: Mapping[str, Any], networks: Mapping[str, str], *, name: str = "") -> Machine:
    """Return a VM from its properties, or from those of its snapshot.

    Args:
        networks: The name of each distributed port group, by its key.
        name: What the VM is called, for a snapshot.
    """
    config = {key.removeprefix("config."): value for key, value in found.items() if key.startswith("config.")}
    devices = [*config.get("hardware.device", ())]
    values = {str(one.key): str(one.value or "") for one in config.get("extraConfig", ())}
    extra = {key: value for key, value in values.items() if value}
    disks: list[Disk] = []
    for place, device in sorted(_placed(devices), key=lambda pair: _order(pair[0])):
        default = f"disk{len(disks) + 1}"
        disks.append(Disk(extra.get(f"{DISK}{place}", default), place, device))
    tree = found.get("snapshot")
    return Machine(
        name=name or plain(str(found.get("name", ""))),
        config=config,
        disks=tuple(disks),
        cards=tuple(
            Card(_network(one, networks), one)
            for one in devices
            if isinstance(one, vim.vm.device.VirtualEthernetCard)
        ),
        iso=next((file for one in devices if (file := _iso(one))), None),
        running=found.get("runtime.powerState", "poweredOff") != "poweredOff",
        tools=found.get("guest.toolsRunningStatus") == "guestToolsRunning",
        named=any(key.startswith(DISK) for key in extra),
        extra=extra,
        snapshots=tuple(_flat(tree.rootSnapshotList)) if tree is not None else (),
    )


def plain(name: str) -> str:
    """Return a name as people write it: vSphere writes a slash in a name as `%2f`, and so on."""
    return unquote(name)


def kind_of(controller: vim.vm.device.VirtualDevice) -> str:
    """Return how the driver names a controller; empty: it is none of disks."""
    return next((kind for kind, one in CONTROLLERS.items() if isinstance(controller, one)), "")


def place(kind: str, bus: int, unit: int) -> str:
    """Return where the guest sees a disk."""
    return f"{BUSES.get(kind, 'scsi')}{bus}:{unit}"


def _placed(
    devices: list[vim.vm.device.VirtualDevice],
) -> Iterator[tuple[str, vim.vm.device.VirtualDisk]]:
    controllers: dict[int | None, Any] = {one.key: one for one in devices if kind_of(one)}
    for one in devices:
        if isinstance(one, vim.vm.device.VirtualDisk):
            owner = controllers.get(one.controllerKey)
            kind = kind_of(owner) if owner is not None else "pvscsi"
            yield place(kind, owner.busNumber if owner is not None else 0, one.unitNumber or 0), one


def _order(where: str) -> tuple[str, int, int]:
    bus, _, unit = where.partition(":")
    letters = bus.rstrip("0123456789")
    return ("" if letters == "scsi" else letters, int(bus.removeprefix(letters) or 0), int(unit or 0))


def _network(card: vim.vm.device.VirtualEthernetCard, networks: Mapping[str, str]) -> str:
    backing = card.backing
    if isinstance(backing, vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo):
        key = str(backing.port.portgroupKey)
        return networks.get(key, key)
    if isinstance(backing, vim.vm.device.VirtualEthernetCard.OpaqueNetworkBackingInfo):
        return networks.get(str(backing.opaqueNetworkId), str(backing.opaqueNetworkId))
    return plain(str(getattr(backing, "deviceName", "") or ""))


def _iso(device: vim.vm.device.VirtualDevice) -> str | None:
    if isinstance(device, vim.vm.device.VirtualCdrom):
        backing = device.backing
        if isinstance(backing, vim.vm.device.VirtualCdrom.IsoBackingInfo) and backing.fileName:
            return str(backing.fileName)
    return None


def _flat(trees: list[vim.vm.SnapshotTree]) -> Iterator[vim.vm.SnapshotTree]:
    for one in trees:
        yield one
        yield from _flat(one.childSnapshotList)


def _captured_disk(disk: Disk) -> VsphereDisk:
    backing = disk.device.backing
    return VsphereDisk(
        name=disk.name,
        file=disk.file,
        format="vmdk",
        size=disk.size,
        place=disk.place,
        mode=disk.mode,
        thin=bool(getattr(backing, "thinProvisioned", True)),
    )


def _captured_card(card: Card) -> VsphereCard:
    device = card.device
    kind = str(device.addressType or "generated").lower()
    entry = {
        "network": card.network,
        "mac": str(device.macAddress or ""),
        "model": next((model for model, one in CARDS.items() if isinstance(device, one)), "vmxnet3"),
        "address": kind if kind in {"generated", "assigned", "manual"} else "generated",
    }
    return VsphereCard.model_validate(entry)


def _controllers(devices: list[Any]) -> Iterator[Controller]:
    for one in devices:
        kind = kind_of(one)
        if kind and kind != "ide":
            yield Controller(kind=kind, bus=int(one.busNumber))


# What vSphere itself writes there: of no meaning, or wrong, for a VM that is created again.
_OF_VSPHERE: Final = (
    "scsi", "sata", "nvme", "ide", "ethernet", "pciBridge", "hpet0", "sched.", "migrate.", "svga.",
    "vmotion.", "monitor.", "softPowerOff", "toolsInstallManager.", "tools.", "guestinfo.detailed",
    "guestinfo.vmtools", "guestinfo.driver", "guestinfo.appInfo", "govcsim", "RUN.", "nvram",
    "vmware.tools.", "numa.", "viv.", "ctkEnabled", "uuid.", "cleanShutdown", "replay.", "checkpoint.",
    "virtualHW.", "vcpu.", "extendedConfigFile",
)  # fmt: skip


def _is_kept(key: str) -> bool:
    return not key.startswith(_OF_VSPHERE)
