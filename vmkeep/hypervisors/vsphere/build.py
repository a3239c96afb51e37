"""Specifications of VMs: what vSphere is told to make, or to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pyVmomi import vim

from vmkeep.hypervisors.vsphere.machine import (
    BUSES,
    CARDS,
    CONTROLLERS,
    DISK,
    kind_of,
    place,
)
from vmkeep.units import KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from vmkeep.hypervisors.vsphere.captured import Captured, VsphereCard
    from vmkeep.hypervisors.vsphere.machine import Card, Disk, Machine

    Change = vim.vm.device.VirtualDeviceSpec

_DEVICE: Final = vim.vm.device
_ADD: Final = "add"
# The controller's own. See: vSphere Web Services API, VirtualSCSIController.scsiCtlrUnitNumber.
_OWN_UNIT: Final = 7
_UNITS: Final = {"scsi": 16, "sata": 30, "nvme": 15, "ide": 2}
_BUSES: Final = 4


class Changes:
    """Changes of the devices of one VM, that are made in one call.

    New devices have keys below zero until vSphere gives them their own.
    """

    def __init__(self, machine: Machine | None) -> None:
        self.changes: list[Change] = []
        self._devices = machine.devices if machine else []
        self._taken = {disk.place for disk in machine.disks} if machine else set()
        self._next = -100
        self._controllers: dict[tuple[str, int], Any] = {
            (BUSES.get(kind, "scsi"), int(getattr(one, "busNumber", 0))): one.key
            for one in self._devices
            if (kind := kind_of(one))
        }

    def controller(self, kind: str, bus: int) -> int:
        """Return the key of a controller, which is added if it is not there."""
        letters = BUSES.get(kind, "scsi")
        key = self._controllers.get((letters, bus))
        if key is None:
            key = self._controllers[letters, bus] = self._key()
            device = CONTROLLERS[kind](key=key, busNumber=bus)
            if isinstance(device, _DEVICE.VirtualSCSIController):
                device.sharedBus = _DEVICE.VirtualSCSIController.Sharing.noSharing
            self._add(device)
        return key

    def free_place(self, *, but: Collection[str] = ()) -> str:
        """Return the first place where no disk is.

        Args:
            but: Places that are kept for others.
        """
        for bus in range(_BUSES):
            for unit in range(_UNITS["scsi"]):
                where = place("pvscsi", bus, unit)
                if unit != _OWN_UNIT and where not in self._taken and where not in but:
                    self._taken.add(where)
                    return where
        raise ValueError("a VM has 60 disks on its SCSI buses at most")

    def add_disk(self, where: str, *, size: int, file: str, create: bool, mode: str = "persistent") -> None:
        """Add a disk.

        Args:
            where: Its place.
            file: Its file, if it is there; otherwise ``[datastore]``, and vSphere names it.
            create: Whether its file is made; it then takes only the room that is used.
        """
        bus, _, unit = where.partition(":")
        letters = bus.rstrip("0123456789")
        kinds = {"sata": "ahci", "nvme": "nvme", "ide": "ide"}
        device = _DEVICE.VirtualDisk(
            key=self._key(),
            controllerKey=self.controller(kinds.get(letters, "pvscsi"), int(bus.removeprefix(letters) or 0)),
            unitNumber=int(unit or 0),
            capacityInKB=size // KiB,
            backing=_flat(file, mode, thin=create),
        )
        self._taken.add(where)
        self._add(device, create=create)

    def take_disk(self, disk: Disk) -> None:
        """Take a disk away from the VM; its files stay."""
        self.changes.append(_DEVICE.VirtualDeviceSpec(operation="remove", device=disk.device))
        self._taken.discard(disk.place)

    def grow_disk(self, disk: Disk, size: int) -> None:
        """Make a disk larger."""
        disk.device.capacityInKB = size // KiB
        # One of the two may be said.
        setattr(disk.device, "capacityInBytes", None)  # noqa: B010  (its type knows no None)
        self.changes.append(_DEVICE.VirtualDeviceSpec(operation="edit", device=disk.device))

    def add_card(
        self, backing: vim.vm.device.VirtualDevice.BackingInfo, card: VsphereCard | None = None
    ) -> None:
        """Add a network card; vSphere gives it an address unless *card* has one."""
        kind = CARDS.get(card.model if card else "vmxnet3", CARDS["vmxnet3"])
        device = kind(
            key=self._key(),
            backing=backing,
            addressType="generated",
            connectable=_DEVICE.VirtualDevice.ConnectInfo(
                startConnected=True, allowGuestControl=True, connected=True
            ),
        )
        if card is not None and card.mac:
            # vSphere takes an address that it generated itself only as one that was assigned.
            device.addressType = "manual" if card.address == "manual" else "assigned"
            device.macAddress = card.mac
        self._add(device)

    def move_card(self, card: Card, backing: vim.vm.device.VirtualDevice.BackingInfo) -> None:
        """Put a card on another network; its address stays."""
        card.device.backing = backing
        self.changes.append(_DEVICE.VirtualDeviceSpec(operation="edit", device=card.device))

    def take_card(self, card: Card) -> None:
        """Take a card away."""
        self.changes.append(_DEVICE.VirtualDeviceSpec(operation="remove", device=card.device))

    def insert(self, iso: str | None) -> None:
        """Put an image into the optical drive, which is added if there is none; or take the image out."""
        drive = next((one for one in self._devices if isinstance(one, _DEVICE.VirtualCdrom)), None)
        connect = _DEVICE.VirtualDevice.ConnectInfo(
            startConnected=iso is not None, allowGuestControl=True, connected=iso is not None
        )
        backing: vim.vm.device.VirtualDevice.BackingInfo = (
            _DEVICE.VirtualCdrom.IsoBackingInfo(fileName=iso)
            if iso
            else _DEVICE.VirtualCdrom.RemotePassthroughBackingInfo(deviceName="", exclusive=False)
        )
        if drive is not None:
            drive.backing, drive.connectable = backing, connect
            self.changes.append(_DEVICE.VirtualDeviceSpec(operation="edit", device=drive))
        elif iso is not None:
            owner = self.controller("ahci", 0)
            self._add(
                _DEVICE.VirtualCdrom(
                    key=self._key(), controllerKey=owner, unitNumber=self._free_unit(owner), backing=backing,
                    connectable=connect,
                )
            )  # fmt: skip

    def _free_unit(self, controller: int) -> int:
        used = {one.unitNumber for one in self._devices if one.controllerKey == controller}
        return next(unit for unit in range(_UNITS["sata"]) if unit not in used)

    def _key(self) -> int:
        self._next -= 1
        return self._next

    def _add(self, device: vim.vm.device.VirtualDevice, *, create: bool = False) -> None:
        spec = _DEVICE.VirtualDeviceSpec(operation=_ADD, device=device)
        if create:
            spec.fileOperation = _DEVICE.VirtualDeviceSpec.FileOperation.create
        self.changes.append(spec)


def _flat(file: str, mode: str, *, thin: bool) -> vim.vm.device.VirtualDisk.FlatVer2BackingInfo:
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=file, diskMode=mode)
    if thin:
        backing.thinProvisioned = True
    return backing


def hardware(captured: Captured) -> vim.vm.ConfigSpec:
    """Return what a captured VM is, without its devices."""
    spec = vim.vm.ConfigSpec(
        numCPUs=captured.cpus,
        memoryMB=captured.memory // MiB,
        guestId=captured.guest,
        annotation=captured.notes,
        firmware="efi" if captured.firmware == "uefi" else "bios",
        changeTrackingEnabled=True,
    )
    if captured.cores > 1:
        spec.numCoresPerSocket = captured.cores
    if captured.secure_boot:
        spec.bootOptions = vim.vm.BootOptions(efiSecureBootEnabled=True)
    return spec


def options(values: Mapping[str, str]) -> list[vim.option.OptionValue]:
    """Return what is set in a VM's extraConfig; what is empty is deleted there."""
    return [vim.option.OptionValue(key=key, value=value) for key, value in values.items()]


def names(places: Mapping[str, str]) -> dict[str, str]:
    """Return what says how disks are called, by their places."""
    return {f"{DISK}{where}": name for name, where in places.items()}


def arrange_cards(
    changes: Changes,
    present: Collection[Card],
    wanted: Iterable[tuple[str, vim.vm.device.VirtualDevice.BackingInfo, VsphereCard | None]],
) -> None:
    """Give a VM a card for each wanted network; one that is on it already stays, others go.

    Args:
        wanted: Network, what attaches a card to it, and what a new card is to be like.
    """
    left = [*present]
    new = []
    for network, backing, card in wanted:
        kept = next((one for one in left if one.network == network), None)
        if kept is not None:
            left.remove(kept)
        else:
            new.append((backing, card))
    for backing, card in new:
        changes.add_card(backing, card)
    for one in left:
        changes.take_card(one)
