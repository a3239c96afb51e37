"""A VM of the `images` driver: what `vm.json` in its folder says."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vmkeep.disks import journal
from vmkeep.errors import SourceError
from vmkeep.units import GiB

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.fleet.model import VM

FILE: Final = "vm.json"
# The prefix that QEMU's own network cards have. See: Linux kernel, QEMU documentation, "52:54:00".
_MAC_PREFIX: Final = (0x52, 0x54, 0x00)


class Model(BaseModel):
    """The base of what is written down of a VM: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DiskFile(Model):
    """A disk and the image it lies in."""

    name: str
    file: str
    """The image's name inside the VM's folder."""
    format: Literal["raw", "qcow2", "vmdk", "vhdx"]
    size: int
    """Virtual size in bytes."""


class NetworkCard(Model):
    """A network card; its address stays the same for the life of the VM."""

    network: str
    mac: str


class Definition(Model):
    """All of a VM but the content of its disks."""

    version: Literal[1] = 1
    name: str
    uuid: str
    cpus: int
    memory: int
    """Bytes."""
    firmware: Literal["bios", "uefi"]
    iso: str | None = None
    networks: tuple[NetworkCard, ...] = ()
    disks: tuple[DiskFile, ...] = ()

    def disk(self, name: str) -> DiskFile | None:
        """Return the disk of that name, if there is one."""
        return next((disk for disk in self.disks if disk.name == name), None)

    def with_disk(self, new: DiskFile) -> Definition:
        """Return the definition with *new* in the place of the disk of that name, or at the end."""
        if self.disk(new.name) is None:
            return self.model_copy(update={"disks": (*self.disks, new)})
        disks = tuple(new if disk.name == new.name else disk for disk in self.disks)
        return self.model_copy(update={"disks": disks})

    def renamed(self, name: str) -> Definition:
        """Return the definition of a copy: its own identity and network addresses."""
        identity = str(uuid.uuid4())
        networks = tuple(card.network for card in self.networks)
        return self.model_copy(
            update={"name": name, "uuid": identity, "networks": cards(identity, networks, known=())}
        )

    def attached(self, network: str) -> Definition:
        """Return the definition with all its network cards on one network."""
        cards = tuple(card.model_copy(update={"network": network}) for card in self.networks)
        return self.model_copy(update={"networks": cards})

    def to_json(self) -> str:
        """Return the text of `vm.json`."""
        return self.model_dump_json(indent=2) + "\n"


def declared(name: str, vm: VM, *, actual: Definition | None, disks: tuple[DiskFile, ...]) -> Definition:
    """Return what the VM should be; its identity and network addresses are kept."""
    identity = actual.uuid if actual else str(uuid.uuid4())
    return Definition(
        name=name,
        uuid=identity,
        cpus=vm.cpus,
        memory=vm.memory,
        firmware=vm.firmware,
        iso=vm.iso,
        networks=cards(identity, vm.networks, known=actual.networks if actual else ()),
        disks=disks,
    )


def stand_in(name: str) -> Definition:
    """Return a definition for a VM that another driver described: enough for its disks to lie beside it."""
    return Definition(name=name, uuid=str(uuid.uuid4()), cpus=1, memory=GiB, firmware="bios")


def cards(
    identity: str, networks: tuple[str, ...], *, known: tuple[NetworkCard, ...]
) -> tuple[NetworkCard, ...]:
    """Return a card for each network; one that is known already keeps its address."""
    left = list(known)
    result = []
    for index, network in enumerate(networks):
        card = next((card for card in left if card.network == network), None)
        if card is not None:
            left.remove(card)
        else:
            card = NetworkCard(network=network, mac=_address(identity, index, network))
        result.append(card)
    return tuple(result)


def read(folder: Path) -> Definition | None:
    """Return the definition in *folder*, or None when there is none.

    Raises:
        SourceError: it cannot be understood.
    """
    path = folder / FILE
    try:
        return parse(path.read_text(encoding="utf-8"), where=str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: {error}") from error


def parse(text: str, *, where: str) -> Definition:
    """Return the definition that *text* says.

    Raises:
        SourceError: it cannot be understood; names *where* it is from.
    """
    try:
        found = Definition.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "the file"
        raise SourceError(f"{where}: {key}: {problem['msg']}") from error
    for disk in found.disks:
        if "/" in disk.file or disk.file in {"", ".", ".."}:
            raise SourceError(
                f"{where}: disk {disk.name}: {disk.file!r} is not a file name in the VM's folder"
            )
    return found


def write(folder: Path, definition: Definition) -> None:
    """Replace the definition in *folder*, all or nothing."""
    journal.write_file(folder / FILE, definition.to_json())


def _address(identity: str, index: int, network: str) -> str:
    digest = hashlib.sha256(f"{identity}/{index}/{network}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (*_MAC_PREFIX, *digest[:3]))
