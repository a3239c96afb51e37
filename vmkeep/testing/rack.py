"""A small fleet on a libvirt daemon of the test's own, with a real repository.

Most tests need no guest: a VM that is started and paused at once costs a third of a second, and its disks are
written through QEMU's monitor, as a guest would.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu

from vmkeep import fleet as fleets
from vmkeep.disks import tools
from vmkeep.disks.raw import RawTarget
from vmkeep.hypervisors.libvirt.driver import LibvirtHypervisor
from vmkeep.hypervisors.libvirt.machine import parse, read
from vmkeep.operations import repositories
from vmkeep.operations.direct import run_direct
from vmkeep.operations.request import Request
from vmkeep.repository import Repository, generate_key_file

if TYPE_CHECKING:
    from vmkeep.fleet import FleetFile
    from vmkeep.operations.report import RunReport
    from vmkeep.repository import Point
    from vmkeep.testing.libvirtd import Libvirtd
    from vmkeep.testing.tiny_guest import BootFiles

FLEET: Final = """\
version: 1
fleet: rack
repository: {{store: ./repository, key: {{file: ./key}}}}
hypervisors: {{here: {{driver: libvirt, uri: "{uri}", sockets: "{sockets}"}}}}
defaults: {{hypervisor: here, memory: 192MiB}}
"""
ONE: Final = """\
vms:
  db1: {disks: [{name: root, size: 64MiB}, {name: data, size: 16MiB}]}
"""


class Rack:
    """A fleet on libvirt. Its runs keep their state below `VMKEEP_STATE`, a folder of the test."""

    def __init__(self, folder: Path, daemon: Libvirtd, vms: str = ONE) -> None:
        """Write the fleet file, make the repository, and create the VMs.

        Args:
            vms: The rest of the fleet file.
        """
        self.folder, self.daemon = folder, daemon
        self.path = folder / "fleet.yaml"
        self.declare(vms)
        generate_key_file(folder / "key")
        Repository.init(repositories.store_of(self.file), repositories.secret_of(self.file)).close()
        self.run("configure")

    def declare(self, vms: str) -> None:
        """Write the fleet file anew."""
        self.path.write_text(FLEET.format(uri=self.daemon.uri, sockets=self.daemon.sockets) + vms)

    @property
    def file(self) -> FleetFile:
        """The fleet file, as it is now."""
        return fleets.load(self.path)

    @property
    def hypervisor(self) -> LibvirtHypervisor:
        """The driver."""
        return LibvirtHypervisor("here", self.daemon.uri, sockets=self.daemon.sockets)

    def domain(self, vm: str) -> libvirt.virDomain:
        """Return a VM as libvirt knows it."""
        return self.daemon.connection.lookupByName(vm)

    def request(self, operation: str, **how: Any) -> Request:
        """Return a request for this fleet."""
        return Request.model_validate({"operation": operation, "fleet": self.path, **how})

    def run(self, operation: str, *, resume: str | None = None, **how: Any) -> RunReport:
        """Carry out an operation without Prefect."""
        return run_direct(self.request(operation, **how), resume=resume)

    def points(self, vm: str) -> list[Point]:
        """Return the recovery points of a VM, oldest first."""
        with repositories.open_repository(self.file) as repository:
            return repository.points(vm)

    def pause(self, vm: str) -> None:
        """Start a VM, and let it not execute anything."""
        self.domain(vm).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def poke(self, vm: str, disk: str, *, at: str, length: str, pattern: int) -> None:
        """Write into a disk of a running VM, through QEMU; `at` and `length` are as qemu-io takes them."""
        self._io(vm, disk, f"write -P {pattern} {at} {length}")
        self._io(vm, disk, "flush")

    def digest(self, vm: str, disk: str) -> str:
        """Return the SHA-256 of what a disk holds now; the VM must not write meanwhile."""
        return hashlib.sha256(self.content(vm, disk)).hexdigest()

    def content(self, vm: str, disk: str) -> bytes:
        """Return what a disk holds now; the VM must not write meanwhile."""
        image = next(one for one in self.hypervisor.images(vm) if one.disk == disk)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            copy = Path(folder) / "disk.raw"
            # -U: QEMU has it open; all of it was flushed.
            tools.run(
                "qemu-img",
                "convert",
                "-U",
                "-f",
                image.format,
                "-O",
                "raw",
                str(image.path),
                str(copy),
                timeout_s=60,
            )
            return copy.read_bytes()

    def saved_digest(self, vm: str, disk: str, *, point: int = -1, component: str = "os") -> str:
        """Return the SHA-256 of a disk as a recovery point has it, by default the newest."""
        with repositories.open_repository(self.file) as repository:
            ref = repository.points(vm)[point].components[component].disks[disk]
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                copy = Path(folder) / "disk.raw"
                with RawTarget(copy, size=ref.size) as target:
                    repository.restore_disk(ref, target)
                return _digest(copy)

    def read(self, report: RunReport, vm: str, component: str = "os") -> int:
        """Return how many bytes a backup read of a component."""
        return report.steps[f"backup {vm}/{component}"].read

    def checkpoints(self, vm: str) -> list[str]:
        """Return the names of a VM's checkpoints, oldest first."""
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL
        return [one.getName() for one in self.domain(vm).listAllCheckpoints(flags)]

    def has_job(self, vm: str) -> bool:
        """Tell whether a backup job is under way."""
        try:
            self.domain(vm).backupGetXMLDesc()
        except libvirt.libvirtError:
            return False
        return True

    def fill(self, vm: str, disk: str, image: Path) -> None:
        """Put the content of a raw image of the same size into a disk of a VM that is powered off."""
        found = next(one for one in self.hypervisor.images(vm) if one.disk == disk)
        tools.run(
            "qemu-img",
            "convert",
            "-n",
            "-f",
            "raw",
            "-O",
            found.format,
            str(image),
            str(found.path),
            timeout_s=120,
        )

    def boot_from(self, vm: str, files: BootFiles) -> None:
        """Let a VM boot a tiny guest's kernel, whatever is on its disks."""
        root = parse(self.domain(vm).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), what=vm)
        system = root.find("os")
        assert system is not None
        for tag, text in (
            ("kernel", files.kernel),
            ("initrd", files.initramfs),
            ("cmdline", files.command_line),
        ):
            ET.SubElement(system, tag).text = str(text)
        self.daemon.connection.defineXML(ET.tostring(root, encoding="unicode"))

    def console(self, vm: str) -> str:
        """Return what a VM wrote on its serial console, and QEMU into its log."""
        where = self.daemon.folder / ("log/qemu" if os.geteuid() == 0 else "cache/libvirt/qemu/log")
        return "".join(path.read_text(errors="replace")[-3000:] for path in where.glob(f"{vm}*.log"))

    def _io(self, vm: str, disk: str, command: str) -> None:
        machine = read(parse(self.domain(vm).XMLDesc(), what=vm))
        found = machine.disk(disk)
        assert found is not None
        index = [one.name for one in machine.disks].index(disk)
        answer = libvirt_qemu.qemuMonitorCommand(
            self.domain(vm),
            f'qemu-io -d /machine/peripheral/virtio-disk{index}/virtio-backend "{command}"',
            libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
        )
        assert not re.search("rror|failed", answer), answer


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
