"""A small fleet on this machine, with real images and a real repository, to run operations on."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any

from vmkeep import fleet as fleets
from vmkeep.operations import repositories
from vmkeep.operations.direct import run_direct
from vmkeep.operations.request import Request
from vmkeep.repository import Repository, generate_key_file
from vmkeep.testing.faults import FaultyStore
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmkeep.fleet import FleetFile
    from vmkeep.operations.report import RunReport
    from vmkeep.repository import Point
    from vmkeep.stores import Store
    from vmkeep.testing.faults import Fault
    from vmkeep.testing.faults import Request as StoreRequest

FLEET = """\
version: 1
fleet: site
repository: {store: ./repository, key: {file: ./key}}
hypervisors: {shelf: {driver: images, path: ./images}}
defaults: {hypervisor: shelf}
vms:
  db1:
    disks: [{name: root, size: 8MiB, format: raw}, {name: data, size: 8MiB, format: raw}]
    components: {os: {}, filesystems: {data: {disk: data}}}
  app1: {depends_on: [db1], disks: [{name: root, size: 8MiB, format: raw}]}
schedules: {backup: {cron: "0 1 * * *", timezone: Europe/Berlin}}
"""


class Site:
    """A fleet of `db1` (two disks, two components) and `app1`, which depends on it.

    Runs keep their state below `VMKEEP_STATE`: set it to a folder of the test first.
    """

    def __init__(self, folder: Path, *, text: str = FLEET) -> None:
        """Make the images with content of their own, the key and the repository."""
        self.folder = folder
        self.path = folder / "fleet.yaml"
        self.path.write_text(text)
        generate_key_file(folder / "key")
        Repository.init(repositories.store_of(self.file), repositories.secret_of(self.file)).close()
        for vm in self.file.fleet.vms:
            for disk in self.file.fleet.vms[vm].disks:
                self.write(vm, disk.name)

    @property
    def file(self) -> FleetFile:
        """The fleet file, as it is now."""
        return fleets.load(self.path)

    def image(self, vm: str, disk: str = "root") -> Path:
        """Return the file of a disk."""
        return self.folder / "images" / vm / f"{disk}.raw"

    def write(self, vm: str, disk: str = "root", *, seed: str = "first") -> None:
        """Fill 2 MiB of a disk with bytes of its own, and leave a hole behind them."""
        path = self.image(vm, disk)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = random.Random(f"{vm}/{disk}/{seed}").randbytes(2 * MiB)
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(8 * MiB)
            file.seek(MiB)
            file.write(data)

    def digest(self, vm: str, disk: str = "root") -> str:
        """Return the SHA-256 of a whole disk."""
        return hashlib.sha256(self.image(vm, disk).read_bytes()).hexdigest()

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

    def spoil_point(self, vm: str, session: str) -> None:
        """Let the object of a recovery point not be what was put there."""
        path = self.folder / "repository" / "points" / vm / session
        data = bytearray(path.read_bytes())
        data[60] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)


def faulty(fault: Callable[[StoreRequest], Fault | None]) -> Callable[[FleetFile], Store]:
    """Return a replacement for `repositories.store_of` whose stores fail as told."""
    real = repositories.store_of
    return lambda file: FaultyStore(real(file), fault)
