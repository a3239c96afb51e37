"""A small fleet on a vSphere server of the test's own, with a real repository."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmkeep import fleet as fleets
from vmkeep.disks.raw import RawTarget
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations import repositories
from vmkeep.operations.direct import run_direct
from vmkeep.operations.request import Request
from vmkeep.repository import Repository, generate_key_file
from vmkeep.testing.vsphere import DATASTORES
from vmkeep.units import MiB

if TYPE_CHECKING:
    from vmkeep.fleet import FleetFile
    from vmkeep.hypervisors.base import Hypervisor
    from vmkeep.operations.report import RunReport
    from vmkeep.repository import Point
    from vmkeep.testing.vsphere import Simulator

LOGIN: Final = "VMKEEP_TEST_VCENTER"
"""The environment variable of the login; it must stay set for as long as the fleet is used."""
FLEET: Final = """\
version: 1
fleet: datacenter
repository: {{store: ./repository, key: {{file: ./key}}}}
hypervisors: {{dc1: {{driver: vsphere, host: "{host}", ca_file: "{ca}", credentials: {{env: {login}}}}}}}
defaults: {{hypervisor: dc1, memory: 64MiB, networks: [lan]}}
"""
TWO: Final = """\
vms:
  db1: {disks: [{name: root, size: 32MiB}, {name: data, size: 16MiB, storage: vmfs2}]}
  app1: {depends_on: [db1], disks: [{name: root, size: 8MiB}]}
"""


class Datacenter:
    """A fleet of `db1` (two disks) and `app1`, which depends on it; all of them hold something.

    Its runs keep their state below `VMKEEP_STATE`, a folder of the test.
    """

    def __init__(self, folder: Path, server: Simulator, vms: str = TWO) -> None:
        """Write the fleet file, make the repository, and create the VMs.

        Args:
            vms: The rest of the fleet file.
        """
        self.folder, self.server = folder, server
        self.path = folder / "fleet.yaml"
        os.environ[LOGIN] = f"{server.user}:{server.password}"
        self.declare(vms)
        generate_key_file(folder / "key")
        Repository.init(repositories.store_of(self.file), repositories.secret_of(self.file)).close()
        self.run("configure")
        for vm, declared in self.file.fleet.vms.items():
            for number in range(len(declared.disks)):
                server.write(vm, number, MiB, random.Random(f"{vm}/{number}").randbytes(2 * MiB))

    def declare(self, vms: str) -> None:
        """Write the fleet file anew."""
        self.path.write_text(FLEET.format(host=self.server.host, ca=self.server.ca, login=LOGIN) + vms)

    @property
    def file(self) -> FleetFile:
        """The fleet file, as it is now."""
        return fleets.load(self.path)

    @property
    def hypervisor(self) -> Hypervisor:
        """The driver."""
        return open_hypervisor("dc1", self.file.fleet.hypervisors["dc1"], self.folder)

    def run(self, operation: str, *, resume: str | None = None, **how: Any) -> RunReport:
        """Carry out an operation without Prefect."""
        request = Request.model_validate({"operation": operation, "fleet": self.path, **how})
        return run_direct(request, resume=resume)

    def points(self, vm: str) -> list[Point]:
        """Return the recovery points of a VM, oldest first."""
        with repositories.open_repository(self.file) as repository:
            return repository.points(vm)

    def digests(self, vm: str) -> list[str]:
        """Return the SHA-256 of each disk of a VM."""
        return [disk.sha256 for disk in self.server.machine(vm).disks]

    def saved_digests(self, vm: str, *, point: int = -1) -> list[str]:
        """Return the SHA-256 of each disk as a recovery point has it, by default the newest."""
        found = []
        declared = [disk.name for disk in self.file.fleet.vms[vm].disks]
        with repositories.open_repository(self.file) as repository:
            disks = repository.points(vm)[point].components["os"].disks
            for ref in (disks[name] for name in declared):
                with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                    copy = Path(folder) / "disk.raw"
                    with RawTarget(copy, size=ref.size) as target:
                        repository.restore_disk(ref, target)
                    found.append(hashlib.sha256(copy.read_bytes()).hexdigest())
        return found

    def strangers(self, *, wait_s: float = 5.0) -> list[str]:
        """Return what is there and belongs to nothing that the fleet declares.

        VMs, snapshots, leases that are open, and disks that no VM has.

        Args:
            wait_s: How long leases of the dead are given to end by themselves.
        """
        deadline = time.monotonic() + wait_s
        while self.server.leases() and time.monotonic() < deadline:
            time.sleep(0.1)
        machines = self.server.machines()
        found = [f"VM {name}" for name in machines if name not in self.file.fleet.vms]
        found += [f"snapshot {one.name}" for vm in machines.values() for one in vm.snapshots]
        found += [f"lease {one}" for one in self.server.leases()]
        owned = {disk.file for vm in machines.values() for disk in vm.disks}
        for store in DATASTORES:
            disks = (one for one in self.server.files(store) if one.endswith("-flat.vmdk"))
            found += [
                f"[{store}] {one}"
                for one in disks
                if f"[{store}] {one.removesuffix('-flat.vmdk')}.vmdk" not in owned
            ]
        return found
