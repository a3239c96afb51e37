"""A VM of vSphere as it was captured: all that is needed to create it again, as JSON.

The fields that every driver has are those of `hypervisors.definition`; the rest is vSphere's own.
"""

from __future__ import annotations

import uuid
from typing import Literal

from pydantic import Field, ValidationError

from vmkeep.errors import InputError
from vmkeep.hypervisors.definition import Definition, DiskFile, Model, NetworkCard


class VsphereDisk(DiskFile):
    """A disk, and where the guest sees it."""

    place: str = ""
    """Controller, bus and unit, such as `scsi0:1`."""
    mode: str = "persistent"
    thin: bool = True

    @property
    def datastore(self) -> str:
        """The name of the datastore that its file lies in."""
        return datastore_of(self.file)


class VsphereCard(NetworkCard):
    """A network card."""

    model: str = "vmxnet3"
    address: Literal["generated", "assigned", "manual"] = "generated"
    """Who chose its address."""


class Controller(Model):
    """A controller of disks."""

    kind: str
    """Such as `pvscsi`."""
    bus: int


class Captured(Definition):
    """A VM."""

    driver: Literal["vsphere"] = "vsphere"
    networks: tuple[VsphereCard, ...] = ()
    disks: tuple[VsphereDisk, ...] = ()
    controllers: tuple[Controller, ...] = ()
    guest: str = "otherLinux64Guest"
    """The identifier of its operating system."""
    hardware: str = ""
    """The version of its virtual hardware, such as `vmx-19`; empty: the host's newest."""
    cores: int = 1
    """Of each socket."""
    secure_boot: bool = False
    notes: str = ""
    extra: dict[str, str] = Field(default_factory=dict)
    """What somebody set in its configuration file beside all that."""

    def renamed(self, name: str) -> Captured:
        """Return the definition of a copy: vSphere gives it an identity and network addresses of its own."""
        cards = tuple(card.model_copy(update={"mac": "", "address": "generated"}) for card in self.networks)
        return self.model_copy(update={"name": name, "uuid": str(uuid.uuid4()), "networks": cards})

    def isolated(self, network: str) -> Captured:
        """Return the definition of a VM of a drill: on one network, and without the medium in its drive."""
        cards = tuple(card.model_copy(update={"network": network}) for card in self.networks)
        return self.model_copy(update={"networks": cards, "iso": None})


def datastore_of(file: str) -> str:
    """Return the datastore in ``[datastore] path``."""
    return file.partition("]")[0].removeprefix("[")


def path_of(file: str) -> str:
    """Return the path in ``[datastore] path``."""
    return file.partition("]")[2].strip()


def parse(text: str, name: str) -> Captured:
    """Return the VM that *text* describes.

    Raises:
        InputError: another driver captured it, or another version of vmkeep.
    """
    try:
        return Captured.model_validate_json(text)
    except ValidationError as error:
        raise InputError(
            f"VM {name}: its recovery point is not of a VM of vSphere: create it with 'vmkeep configure', "
            "then restore its disks into it"
        ) from error
