"""The part of the demo with machines that run: real guests under a libvirt daemon of the demo's own."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from demo.terminal import DemoError
from vmkeep.disks import tools
from vmkeep.errors import GuestError, TemporaryError, UnsupportedError
from vmkeep.guests.agent import AgentGuest
from vmkeep.testing import database_guest, tiny_guest
from vmkeep.testing.guests import Volume, build_filesystem
from vmkeep.units import MiB, format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.terminal import Terminal
    from vmkeep.testing.rack import Rack

_FLEET: Final = """\
vms:
  orders:
    disks: [{{name: root, size: {size}MiB}}]
    guest: {{agent: true}}
    components: {{os: {{}}, databases: {{orders: {{engine: postgresql}}}}}}
    health: [{{agent: true}}, {{exec: {query}}}]      # PostgreSQL answers
  shop:
    disks: [{{name: root, size: 32MiB}}]
    guest: {{agent: true}}
    depends_on: [orders]
consistency_groups: {{both: {{vms: [orders, shop], max_freeze: 10s}}}}
"""
_COUNT: Final = "SELECT count(*) FROM orders"
_FIRST: Final = 20_000
_MORE: Final = 500
_BOOT_S: Final = 180.0
_METADATA_ONLY: Final = 2
"""VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY: the disk goes, too."""


def missing() -> str:
    """Return what keeps guests from running here; empty: nothing does."""
    for tool in ("qemu-system-x86_64", "libvirtd", "qemu-ga", "busybox"):
        if not tools.installed(tool):
            return f"{tool} is not installed"
    try:
        import libvirt  # noqa: F401, PLC0415  (an extra, which not everybody has)

        with tempfile.TemporaryDirectory() as folder:
            tiny_guest.build(Path(folder))
    except ModuleNotFoundError:
        return "the Python module libvirt is not installed"
    except (UnsupportedError, OSError) as error:
        return str(error)
    return ""


class Running:
    """Two guests that depend on each other: a database server, and a shop."""

    def __init__(self, terminal: Terminal, rack: Rack) -> None:
        self._terminal, self._rack = terminal, rack
        self._where = ("--fleet", str(rack.path.relative_to(terminal.folder)))

    def play(self) -> None:
        """Boot, save under load, save what changed, lose the database, run again from its recovery point.

        Raises:
            DemoError: something is not as promised.
        """
        self._boot()
        first = self._backup(1)
        self._ask(f"INSERT INTO orders SELECT generate_series({_FIRST + 1}, {_FIRST + _MORE})")
        second = self._backup(2)
        # Of the disks what changed, of the database all files: how many these are depends on its version.
        if not 0 < second["read"] < first["read"] / 2:
            raise DemoError(f"the second backup read {second['read']} bytes, the first {first['read']}")
        whole, changed = format_size(first["read"]), format_size(second["read"])
        self._terminal.result(
            f"saved while they ran, twice: {whole} read, then the {changed} that had changed"
        )
        self._lose()
        begun = time.monotonic()
        self._terminal.vmkeep("restore", "orders", "--instant", "--direct", *self._where)
        found = self._ask(_COUNT)
        if found != str(_FIRST + _MORE):
            raise DemoError(f"the restored PostgreSQL has {found} orders, and had {_FIRST + _MORE}")
        self._terminal.result(
            f"the lost machine ran from its recovery point, answered, and had all its data after "
            f"{format_duration(time.monotonic() - begun)}: its PostgreSQL has {int(found):,} orders"
        )

    def _boot(self) -> None:
        folder = self._rack.folder
        self._terminal.say("Booting two guests with Debian's kernel, one with a real PostgreSQL server ...")
        create = "CREATE TABLE orders (id INT PRIMARY KEY)"
        database_guest.build(
            folder / "orders.raw", [create, f"INSERT INTO orders SELECT generate_series(1, {_FIRST})"]
        )
        pages = folder / "pages"
        (pages / "www").mkdir(parents=True)
        (pages / "www" / "index.html").write_text("<h1>The shop is open</h1>\n")
        build_filesystem(folder / "shop.raw", Volume(pages, size=32 * MiB))
        boot = tiny_guest.build(folder)
        for vm in ("orders", "shop"):
            self._rack.fill(vm, "root", folder / f"{vm}.raw")
            (folder / f"{vm}.raw").unlink()
        for vm in ("orders", "shop"):
            self._rack.boot_from(vm, boot)
            self._rack.domain(vm).create()
        self._wait()
        self._terminal.result(f"a guest runs, and its PostgreSQL answers: {int(self._ask(_COUNT)):,} orders")

    def _backup(self, number: int) -> dict[str, int]:
        file = self._rack.folder.relative_to(self._terminal.folder) / f"backup-{number}.json"
        return self._terminal.vmkeep_json("backup", "--direct", *self._where, file=str(file))

    def _lose(self) -> None:
        self._terminal.say("virsh destroy orders; virsh undefine orders; rm its disk")
        disks = [image.path for image in self._rack.hypervisor.images("orders")]
        domain = self._rack.domain("orders")
        domain.destroy()
        for checkpoint in domain.listAllCheckpoints():
            checkpoint.delete(_METADATA_ONLY)
        domain.undefine()
        for disk in disks:
            disk.unlink()

    def _wait(self) -> None:
        deadline = time.monotonic() + _BOOT_S
        while True:
            try:
                self._ask(_COUNT)
                AgentGuest(self._rack.hypervisor.agent("shop"), name="shop").ping(timeout_s=2)
            except (GuestError, TemporaryError) as error:
                if time.monotonic() > deadline:
                    raise DemoError(f"the guests do not answer: {error}") from error
                time.sleep(0.5)
            else:
                return

    def _ask(self, statement: str) -> str:
        guest = AgentGuest(self._rack.hypervisor.agent("orders"), name="orders")
        done = guest.run(database_guest.asking(statement), timeout_s=60)
        if done.code:
            raise GuestError(done.err.decode("utf-8", "replace").strip())
        return done.out.decode().strip()


@contextlib.contextmanager
def running(terminal: Terminal) -> Iterator[Running]:
    """Run the daemon, with a fleet in the folder `running`, for the length of a `with` block."""
    from vmkeep.testing.libvirtd import libvirtd  # noqa: PLC0415  (an extra, which not everybody has)
    from vmkeep.testing.rack import Rack  # noqa: PLC0415

    folder = terminal.folder / "running"
    folder.mkdir()
    # Sockets lie in it, whose paths may be 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="vmkeep-demo.") as short, libvirtd(Path(short)) as daemon:
        daemon.define_pool("default", folder / "disks")
        query = json.dumps(shlex.join(database_guest.asking("SELECT 1")))  # which is YAML, too
        vms = _FLEET.format(size=database_guest.SIZE // MiB, query=query)
        yield Running(terminal, Rack(folder, daemon, vms))
    shutil.rmtree(folder / "disks", ignore_errors=True)
