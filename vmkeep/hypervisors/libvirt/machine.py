"""A domain as vmkeep sees it, read from its XML.

Disks are called as the fleet file calls them. Where vmkeep made them, the domain's own metadata says which
is which; others are called like their target (`vda`), or like their file (`db1-data.qcow2`: `data`).

    <metadata>
      <vmkeep:vm xmlns:vmkeep="urn:vmkeep:libvirt:1">
        <vmkeep:disk name="root" target="vda"/>
      </vmkeep:vm>
    </metadata>
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from vmkeep.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE: Final = "urn:vmkeep:libvirt:1"
PREFIX: Final = "vmkeep"
_TAG: Final = f"{{{NAMESPACE}}}"
AGENT_PORT: Final = "org.qemu.guest_agent.0"
# See: https://libvirt.org/formatdomain.html, memory: units are KiB unless said otherwise.
_UNITS: Final = {
    "b": 1, "bytes": 1, "KB": 10**3, "k": 2**10, "KiB": 2**10, "MB": 10**6, "M": 2**20, "MiB": 2**20,
    "GB": 10**9, "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40,
}  # fmt: skip

ET.register_namespace(PREFIX, NAMESPACE)


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a domain."""

    name: str
    """As the fleet file calls it."""
    target: str
    """As libvirt calls it, such as `vda`."""
    format: str
    path: Path | None = None
    """The file or block device it lies in; `None` for what lies elsewhere, such as in Ceph."""
    volume: tuple[str, str] | None = None
    """The pool and volume it lies in, where the domain says so."""


@dataclass(frozen=True, slots=True)
class Card:
    """A network adapter."""

    network: str
    """The libvirt network; `bridge:NAME` for a bridge of the host, `user` for QEMU's own."""
    mac: str


@dataclass(frozen=True, slots=True)
class Machine:
    """All of a domain that vmkeep compares with the fleet file."""

    name: str
    uuid: str
    cpus: int
    memory: int
    """Bytes."""
    firmware: str
    """`bios` or `uefi`."""
    iso: str | None
    disks: tuple[Disk, ...]
    cards: tuple[Card, ...]
    agent: bool
    """Whether it has the channel of a guest agent."""
    nvram: Path | None = None
    """The file that its UEFI settings lie in."""
    named: bool = False
    """Whether its metadata says what its disks are called: vmkeep made it, or took it over."""

    def disk(self, name: str) -> Disk | None:
        """Return the disk of that name, if there is one."""
        return next((disk for disk in self.disks if disk.name == name), None)


def parse(text: str, *, what: str) -> ET.Element:
    """Return the XML that libvirt, or a recovery point, says.

    Raises:
        SourceError: it is none; names *what* it is from.
    """
    try:
        return ET.fromstring(text)  # noqa: S314  (from libvirt or our repository; expat bounds entities)
    except ET.ParseError as error:
        raise SourceError(f"{what}: not XML: {error}") from error


def to_text(element: ET.Element) -> str:
    """Return XML as text, indented."""
    ET.indent(element)
    return ET.tostring(element, encoding="unicode") + "\n"


def read(root: ET.Element) -> Machine:
    """Return the domain that *root* describes."""
    name = root.findtext("name", "")
    loader = root.find("os/loader")
    efi = (root.find("os") is not None and root.find("os").get("firmware") == "efi") or (  # type: ignore[union-attr]
        loader is not None and loader.get("type") == "pflash"
    )
    nvram = root.findtext("os/nvram")
    return Machine(
        name=name,
        uuid=root.findtext("uuid", ""),
        cpus=int(root.findtext("vcpu", "1")),
        memory=_bytes(root.find("memory")),
        firmware="uefi" if efi else "bios",
        iso=_iso(root),
        disks=tuple(_disks(root, name)),
        cards=tuple(_cards(root)),
        agent=root.find(f"devices/channel/target[@name='{AGENT_PORT}']") is not None,
        nvram=Path(nvram) if nvram else None,
        named=bool(names(root)),
    )


def disk_elements(root: ET.Element) -> list[ET.Element]:
    """Return the elements of the disks that hold a guest's data: no floppies and optical drives."""
    return [one for one in root.findall("devices/disk") if one.get("device", "disk") in {"disk", "lun"}]


def target_of(disk: ET.Element) -> str:
    """Return the target of a disk's element, such as `vda`."""
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def names(root: ET.Element) -> dict[str, str]:
    """Return what the domain's metadata calls its disks, by target."""
    return {
        one.get("target", ""): one.get("name", "")
        for one in root.iterfind(f"metadata/{_TAG}vm/{_TAG}disk")
        if one.get("name")
    }


def name_disks(root: ET.Element, called: dict[str, str]) -> None:
    """Write into the domain's metadata what its disks are called, by target."""
    ours = own(root)
    for old in ours.findall(f"{_TAG}disk"):
        ours.remove(old)
    for target, name in called.items():
        ET.SubElement(ours, f"{_TAG}disk", {"name": name, "target": target})


def own(root: ET.Element) -> ET.Element:
    """Return vmkeep's own element in the domain's metadata; it is made where it is missing."""
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.Element("metadata")
        root.insert(_place_of_metadata(root), metadata)
    found = metadata.find(f"{_TAG}vm")
    return found if found is not None else ET.SubElement(metadata, f"{_TAG}vm")


def _place_of_metadata(root: ET.Element) -> int:
    tags = [child.tag for child in root]
    return max(tags.index(tag) + 1 for tag in ("name", "uuid", "title", "description") if tag in tags)


def _bytes(element: ET.Element | None) -> int:
    if element is None or element.text is None:
        return 0
    return int(element.text) * _UNITS.get(element.get("unit", "KiB"), 2**10)


def _iso(root: ET.Element) -> str | None:
    for disk in root.findall("devices/disk[@device='cdrom']"):
        source = disk.find("source")
        if source is not None:
            return source.get("file") or source.get("volume")
    return None


def _disks(root: ET.Element, vm: str) -> Iterator[Disk]:
    called = names(root)
    for element in disk_elements(root):
        target = target_of(element)
        driver = element.find("driver")
        source = element.find("source")
        fields = dict(source.attrib) if source is not None else {}
        where = fields.get("file") or fields.get("dev")
        path = Path(where) if where else None
        pool, volume = fields.get("pool"), fields.get("volume")
        yield Disk(
            name=called.get(target) or _called_like(vm, path, target),
            target=target,
            format=driver.get("type", "raw") if driver is not None else "raw",
            path=path,
            volume=(pool, volume) if pool and volume else None,
        )


def _called_like(vm: str, path: Path | None, target: str) -> str:
    """Return the name of a disk that nobody named: what its file is called behind the VM's name."""
    stem = path.stem if path else ""
    if stem.startswith(f"{vm}-") and len(stem) > len(vm) + 1:
        return stem[len(vm) + 1 :]
    return target


def _cards(root: ET.Element) -> Iterator[Card]:
    for element in root.findall("devices/interface"):
        mac, source = element.find("mac"), element.find("source")
        kind = element.get("type", "")
        where = dict(source.attrib) if source is not None else {}
        network = where.get("network", "")
        if kind == "bridge":
            network = f"bridge:{where.get('bridge', '')}"
        elif kind != "network":
            network = kind if kind == "user" else f"{kind}:{where.get('dev', '')}"
        yield Card(network, mac.get("address", "") if mac is not None else "")
