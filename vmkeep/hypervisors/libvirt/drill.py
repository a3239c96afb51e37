"""VMs of a drill: alone in a network of their own, with nothing of the host that others use, and marked.

    <vmkeep:drill network="vmkeep-drill-20260101T010000Z-0123abcd" maker="4711 ..."/>    in the metadata of
                                                                                         domain and network

The network is transient: it is gone when the host restarts. It leads nowhere (no <forward>). Guests that ask
for an address by DHCP get one, and are found under the names of the VMs that they are copies of.
"""

from __future__ import annotations

import contextlib
import ipaddress
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import libvirt

from vmkeep.disks import locking, maker
from vmkeep.errors import InputError, NotFoundError, SourceError
from vmkeep.hypervisors.base import Change
from vmkeep.hypervisors.drilled import is_named_by, orphan, require_isolated, require_mark
from vmkeep.hypervisors.libvirt import pools, restoring
from vmkeep.hypervisors.libvirt.connection import translated
from vmkeep.hypervisors.libvirt.machine import NAMESPACE, own, parse, read, to_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.hypervisors.base import Orphan
    from vmkeep.hypervisors.libvirt.connection import Connection

_MARK: Final = f"{{{NAMESPACE}}}drill"
# See: RFC 2544, appendix C.2.2: set aside for tests between networks, so that nothing real has one of them.
_SUBNETS: Final = [*ipaddress.ip_network("198.18.0.0/15").subnets(new_prefix=24)]
_TRIES: Final = 16
_FIRST_GUEST: Final = 10
_DEVICES: Final = ("hostdev", "filesystem", "shmem", "lease", "redirdev")
"""Devices that are the host's, or lead out of the guest past its network."""
_PORTS: Final = ("serial", "console", "parallel", "channel")
_QEMU: Final = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_INACTIVE: Final = libvirt.VIR_DOMAIN_XML_INACTIVE
_UNDEFINE: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


class Drill:
    """Makes and removes what drills need. Safe to use from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def isolate(self, drill: str) -> None:
        """Make the isolated network of a drill."""
        with self._lock:
            network = self._find(drill)
            if network is not None:
                self._require_ours(network, drill)
                return
            host = self._connection.get()
            start = zlib.crc32(drill.encode())
            for number in range(_TRIES):
                subnet = _SUBNETS[(start + number) % len(_SUBNETS)]
                try:
                    host.networkCreateXML(_network(drill, subnet))
                except libvirt.libvirtError as error:
                    # It has no code of its own.
                    if "already in use" not in str(error) or number == _TRIES - 1:
                        with translated(f"isolated network {drill}"):
                            raise
                else:
                    return

    def attach(self, root: ET.Element, original: str, drill: str) -> Iterator[Change]:
        """Put a domain that is not defined yet into the drill's network, and nowhere else; mark it.

        Args:
            original: The name under which others know it.
        """
        network = self._find(drill)
        require_isolated(drill, {drill} if network is not None else ())
        ours = own(root)
        for old in ours.findall(_MARK):
            ours.remove(old)
        ET.SubElement(ours, _MARK, {"network": drill, "maker": maker.me()})
        yield from _without_host(root)
        for number, element in enumerate(root.findall("devices/interface")):
            yield Change("network", _where(element), drill, applied=True)
            address = _isolated(element, drill)
            if number == 0 and address is not None and network is not None:
                with self._lock:
                    _name(network, address, original)

    def remove(self, name: str, drill: str) -> None:
        """Remove a domain of the drill with the files that were made for it."""
        domain = self._connection.find_domain(name)
        if domain is None:
            return
        with translated(f"VM {name}: removing"):
            root = parse(domain.XMLDesc(_INACTIVE), what=f"VM {name}")
            require_mark(name, drill_of(root), drill)
            if domain.isActive():
                domain.destroy()
            files = self._files(name, root)
            for path in files:
                what = f"VM {name}: {path}"
                with contextlib.suppress(FileNotFoundError), locking.locked(path, what=what, write=True):
                    path.unlink()
            # It goes last: killed before, its definition still says which files are to be removed.
            domain.undefineFlags(_UNDEFINE)
            for path in files:
                with contextlib.suppress(libvirt.libvirtError):  # the pool's list is for people
                    pools.refresh(self._connection, path)
            for log in _logs(root, name):
                with contextlib.suppress(OSError):  # it is root's where virtlogd writes it
                    log.unlink()

    def end_isolation(self, drill: str) -> None:
        """Remove the isolated network of a drill."""
        network = self._find(drill)
        if network is None:
            return
        self._require_ours(network, drill)
        with translated(f"isolated network {drill}"), contextlib.suppress(NotFoundError):
            network.destroy()

    def orphans(self) -> Iterator[Orphan]:
        """Yield what makers that do not run here any more left: VMs, then networks, of drills; new disks."""
        host = self._connection.get()
        with translated(f"VMs at {self._connection.uri}"):
            domains, networks = host.listAllDomains(), host.listAllNetworks()
        for domain in domains:
            with contextlib.suppress(libvirt.libvirtError):  # it went meanwhile
                name = domain.name()
                root = parse(domain.XMLDesc(_INACTIVE), what=f"VM {name}")
                yield from _left_of(name, root)
        for network in networks:
            with contextlib.suppress(libvirt.libvirtError):
                root = parse(network.XMLDesc(), what=f"network {network.name()}")
                mark = root.find(f"metadata/{_MARK}")
                if (
                    mark is not None
                    and mark.get("network") == network.name()
                    and root.find("forward") is None
                ):
                    yield from orphan(mark.get("maker", ""), drill=network.name())

    def _find(self, drill: str) -> libvirt.virNetwork | None:
        try:
            with translated(f"isolated network {drill}"):
                return self._connection.get().networkLookupByName(drill)
        except NotFoundError:
            return None

    def _require_ours(self, network: libvirt.virNetwork, drill: str) -> None:
        with translated(f"network {drill}"):
            root = parse(network.XMLDesc(), what=f"network {drill}")
        if root.find(f"metadata/{_MARK}") is None or root.find("forward") is not None:
            raise InputError(f"network {drill} was not made for a drill: it stays as it is")

    def _files(self, name: str, root: ET.Element) -> list[Path]:
        """Return the files that the drill made for a domain's disks.

        All of them are called after it, for `create` gave it no other; nothing else is ever deleted.
        """
        paths = {disk.path for disk in read(root).disks if disk.path}
        paths |= {path for path, _ in restoring.restoring(root).values()} | {*restoring.replaced(root)}
        strangers = [path for path in paths if not path.name.startswith(f"{name}-")]
        if strangers:
            raise SourceError(
                f"VM {name} was made for a drill, and has a disk now that was not: {strangers[0]}; "
                f"take it away from the VM, then remove it with 'virsh undefine {name}'"
            )
        return sorted(paths)


def _left_of(name: str, root: ET.Element) -> Iterator[Orphan]:
    mark = next(root.iter(_MARK), None)
    if mark is not None:
        drill = mark.get("network", "")
        # A copy that somebody made of a drill's VM carries the mark, too, and is called otherwise.
        if is_named_by(name, drill):
            yield from orphan(mark.get("maker", ""), vm=name, drill=drill)
        return
    for made, disks in restoring.makers(root).items():
        yield from orphan(made, vm=name, disks=tuple(disks))


def drill_of(root: ET.Element) -> str | None:
    """Return the drill that a domain was made for, if its mark says so."""
    mark = next(root.iter(_MARK), None)
    return mark.get("network") if mark is not None else None


def unmark(root: ET.Element) -> None:
    """Take the mark out of a definition: what is restored from a copy of a drill's VM is none itself."""
    ours = own(root)
    for mark in ours.findall(_MARK):
        ours.remove(mark)


def _network(drill: str, subnet: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    root = ET.Element("network")
    ET.SubElement(root, "name").text = drill
    mark = {"network": drill, "maker": maker.me()}
    ET.SubElement(ET.SubElement(root, "metadata"), _MARK, mark)
    # The bridge passes frames on at once: guests ask for an address when they boot, and do not wait.
    ET.SubElement(root, "bridge", {"stp": "off", "delay": "0"})
    ET.SubElement(root, "domain", {"name": "drill.vmkeep", "localOnly": "yes"})
    ip = ET.SubElement(root, "ip", {"address": str(subnet[1]), "netmask": str(subnet.netmask)})
    ET.SubElement(ET.SubElement(ip, "dhcp"), "range", {"start": str(subnet[2]), "end": str(subnet[254])})
    return to_text(root)


def _name(network: libvirt.virNetwork, mac: str, name: str) -> None:
    """Let the DHCP and DNS server of a network know a guest: an address of its own, by its name."""
    what = f"network {network.name()}"
    with translated(what):
        root = parse(network.XMLDesc(), what=what)
        hosts = root.findall("ip/dhcp/host")
        if any(one.get("mac") == mac for one in hosts):
            return
        ip = root.find("ip")
        where = ip.get("address", "") if ip is not None else ""
        free = ipaddress.ip_address(where) - 1 + _FIRST_GUEST + len(hosts)
        host = ET.Element("host", {"mac": mac, "name": name, "ip": str(free)})
        network.update(
            libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST,
            libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST,
            -1,
            ET.tostring(host, encoding="unicode"),
            libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE,
        )


def _isolated(element: ET.Element, drill: str) -> str | None:
    """Attach a network adapter to the drill's network; return its MAC address.

    Kept are what the guest sees of it: its address, model and place on the bus.
    """
    kept = {"mac", "model", "address", "boot", "rom", "mtu", "alias", "acpi"}
    for child in [*element]:
        if child.tag not in kept:
            element.remove(child)
    element.attrib.clear()
    element.set("type", "network")
    ET.SubElement(element, "source", {"network": drill})
    mac = element.find("mac")
    return mac.get("address") if mac is not None else None


def _where(element: ET.Element) -> str:
    source = element.find("source")
    return next(iter(source.attrib.values()), "") if source is not None else element.get("type", "")


def _without_host(root: ET.Element) -> Iterator[Change]:
    """Take away what is the host's, or is the original's alone; the guest starts without it."""
    for parent, element in [(one, child) for one in root.iter() for child in one]:
        if element.tag in _DEVICES or element.tag == f"{_QEMU}commandline" or _is_of_host(element):
            parent.remove(element)
            yield Change(
                _plain(element.tag), element.get("type") or "is there", "none in a drill", applied=True
            )
    yield from _without_media(root)
    yield from _own_ports(root)


def _is_of_host(element: ET.Element) -> bool:
    """Tell whether a device is one of the host's: memory in a file, a TPM chip, a keyboard."""
    backend = element.find("backend")
    return (
        (element.tag == "memory" and element.find("source/path") is not None)
        or (element.tag == "tpm" and backend is not None and backend.get("type") == "passthrough")
        or (element.tag == "input" and element.get("type") in {"passthrough", "evdev"})
    )


def _without_media(root: ET.Element) -> Iterator[Change]:
    for drive in root.findall("devices/disk"):
        source = drive.find("source")
        if drive.get("device", "disk") in {"cdrom", "floppy"} and source is not None:
            drive.remove(source)
            drive.set("type", "file")
            yield Change(drive.get("device", ""), "a medium", "none in a drill", applied=True)


def _own_ports(root: ET.Element) -> Iterator[Change]:
    """Give it consoles, screens and sockets of its own in place of those at an address of the host."""
    for port in (one for tag in _PORTS for one in root.findall(f"devices/{tag}")):
        kind = port.get("type", "")
        sources = [*port.findall("source"), *port.findall("protocol")]
        if kind == "pty" or not sources or (kind == "unix" and port.tag == "channel"):
            continue
        for source in sources:
            port.remove(source)
        port.set("type", "pty")
        yield Change(port.tag, kind, "pty", applied=True)
    for screen in root.findall("devices/graphics"):
        for key in ("port", "tlsPort", "websocket", "socket"):
            screen.attrib.pop(key, None)
        if screen.get("type") in {"vnc", "spice"}:
            screen.set("autoport", "yes")
    for cid in root.findall("devices/vsock/cid"):
        cid.attrib.clear()
        cid.set("auto", "yes")


def _plain(tag: str) -> str:
    return tag.rpartition("}")[2]


def _logs(root: ET.Element, name: str) -> Iterator[Path]:
    """Yield the logs of consoles that are called after the domain."""
    for log in root.iterfind("devices/*/log"):
        path = Path(log.get("file", ""))
        if name in path.name:
            yield path
