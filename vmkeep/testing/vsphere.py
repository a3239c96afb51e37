"""A vSphere server of our own for tests: govmomi's simulator with real bytes behind its disks.

The program in `vsphere_simulator/` is built when it is first needed, from the Go packages of the
distribution, and kept. It starts in some milliseconds, so that every test has a vCenter of its own:
datacenter DC0, a cluster of three hosts, datastores vmfs1 and vmfs2, networks lan and dmz, and no VMs.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import http.client
import json
import os
import ssl
import subprocess
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmkeep.disks import tools
from vmkeep.errors import SourceError, UnsupportedError
from vmkeep.testing.tls import loopback_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

USER: Final = "administrator@vsphere.local"
PASSWORD: Final = "only for tests on the loopback device"  # noqa: S105
DATACENTER: Final = "DC0"
CLUSTER: Final = "DC0_C0"
HOSTS: Final = ("DC0_C0_H0", "DC0_C0_H1", "DC0_C0_H2")
DATASTORES: Final = ("vmfs1", "vmfs2")
NETWORKS: Final = ("lan", "dmz")

_SOURCES: Final = Path(__file__).with_name("vsphere_simulator")
_PACKAGES: Final = "/usr/share/gocode"
"""Where Debian and Ubuntu put the sources of Go packages. Of govmomi, 0.24.2 is tested (Debian 12)."""
_ANSWER_S: Final = 60.0
_BUILD_S: Final = 1200.0


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a VM as it is now."""

    key: int
    label: str
    file: str
    """In the datastore: the link of the chain that is written."""
    links: int
    raw: Path
    """A local file with what the disk holds; another one after the next snapshot."""
    size: int
    """Bytes."""
    uuid: str

    @property
    def sha256(self) -> str:
        """The hash of all that it holds, as hex digits."""
        with self.raw.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of a VM."""

    id: str
    name: str
    description: str
    quiesced: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM in the inventory."""

    id: str
    running: bool
    consolidation_needed: bool
    disks: tuple[Disk, ...]
    snapshots: tuple[Snapshot, ...]
    """Parents before their children."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the API, or one transfer of data."""

    method: str
    """As `CreateSnapshot_Task`; `GET /nfc` and the like for transfers."""
    object: str
    """The object's id; of a transfer, the path."""
    range: str
    """The header `Range`."""
    sent: int
    """Bytes of data that went to the client."""
    received: int
    """Bytes of data that came from it."""


@dataclass(frozen=True, slots=True)
class Simulator:
    """A running server."""

    folder: Path
    host: str
    """The address and port: `127.0.0.1:34567`."""
    ca: Path
    """PEM file of the certificate that signed the server's."""
    process: subprocess.Popen[bytes]
    user: str = USER
    password: str = PASSWORD

    @property
    def tls(self) -> ssl.SSLContext:
        """What verifies the server."""
        return ssl.create_default_context(cafile=str(self.ca))

    # --- what there is

    def machines(self) -> Mapping[str, Machine]:
        """Return all VMs by name."""
        return {name: _machine(found) for name, found in self._ask("GET", "vms").items()}

    def machine(self, name: str) -> Machine:
        """Return a VM."""
        return self.machines()[name]

    def leases(self) -> Sequence[str]:
        """Return the ids of leases that are open."""
        found: list[str] = self._ask("GET", "leases")
        return found

    def files(self, datastore: str = DATASTORES[0]) -> Sequence[str]:
        """Return the paths of all files of a datastore, in order."""
        root = self.datastore(datastore)
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def datastore(self, name: str = DATASTORES[0]) -> Path:
        """Return the folder that a datastore is."""
        return self.folder / "datastores" / name

    def requests(self, method: str | None = None) -> Sequence[Request]:
        """Return what clients asked for since the start, or since `forget_requests`, in order."""
        found = [
            Request(one["Method"], one["Object"], one["Range"], one["Sent"], one["Received"])
            for one in self._ask("GET", "requests")
        ]
        return [one for one in found if method in (None, one.method)]

    def forget_requests(self) -> None:
        """Begin `requests` anew."""
        self._ask("DELETE", "requests")

    # --- as the guest

    def write(self, vm: str, disk: int, offset: int, data: bytes) -> None:
        """Write into the disk with a number as the guest does: into what is live, never amid a snapshot."""
        self._ask("POST", "write", {"vm": vm, "disk": disk, "offset": offset}, data)

    def read(self, vm: str, disk: int, offset: int, size: int) -> bytes:
        """Return what a disk holds."""
        with self.machine(vm).disks[disk].raw.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def set_guest(
        self, vm: str, *, tools: bool, heartbeat: str = "green", address: str = "", hostname: str = ""
    ) -> None:
        """Say how the guest of a VM, also of one that comes later, is while it runs; else it has no tools.

        Args:
            heartbeat: `gray`, `green`, `yellow` or `red`.
        """
        has = {"Tools": tools, "Heartbeat": heartbeat, "Address": address, "Hostname": hostname}
        self._ask("POST", "guest", {"vm": vm}, has)

    # --- what goes wrong

    def fail(self, method: str, fault: str, *, times: int = 1, of: str = "", quiesced: bool = False) -> None:
        """Let calls end with a fault, such as `FileFault`; the work of tasks is not begun.

        Args:
            of: Only of the object with this id.
            quiesced: Only for snapshots that are to be quiesced; of VMs that run.
        """
        self._inject(On=method, Fault=fault, Times=times, For=of, NotQuiet=quiesced)

    def hang(self, method: str, seconds: float | None = None, *, of: str = "") -> None:
        """Let the next task wait before it begins; `None` is for ever, or until it is cancelled."""
        self._inject(On=method, Hang=-1 if seconds is None else seconds, For=of)

    def drop(self, method: str, *, after: bool = False, times: int = 1) -> None:
        """Let the connection of a call break, before it is carried out or after it; so no answer comes."""
        self._inject(On=method, Drop="after" if after else "before", Times=times)

    def break_transfer(self, method: str, *, after: int = 0, of: str = "", times: int = 1) -> None:
        """Let the connection of a transfer, as `GET /nfc`, break after some bytes of data.

        Args:
            of: Only for paths that end so.
        """
        self._inject(On=method, AfterBytes=after, For=of, Times=times)

    def refuse_transfer(self, method: str, status: int, *, of: str = "", times: int = 1) -> None:
        """Let a transfer be answered with a status."""
        self._inject(On=method, Status=status, For=of, Times=times)

    def keep_deltas(self, *, times: int = 1) -> None:
        """Let the removal of a snapshot fail when only its disks are left: consolidation is needed then."""
        self._inject(On="RemoveSnapshot_Task", Keep=True, Times=times)

    def faults(self) -> Sequence[str]:
        """Return the methods of faults that have not happened yet."""
        return [one["On"] for one in self._ask("GET", "faults")]

    def expire_sessions(self) -> None:
        """End all sessions; their next calls get `NotAuthenticated`."""
        self._ask("POST", "expire")

    def settings(
        self,
        *,
        lock_running: bool = False,
        lease_timeout: int = 300,
        page_size: int = 2000,
        coarse: bool = False,
    ) -> None:
        """Set what servers differ in; what is not given gets its default.

        Args:
            lock_running: Extents of running VMs cannot be read by `/folder`.
            lease_timeout: Seconds that a lease waits for news of progress.
            page_size: How many changed areas are in one answer.
            coarse: All of a disk is one changed area.
        """
        values = {
            "LockRunning": lock_running, "LeaseTimeout": lease_timeout,
            "PageSize": page_size, "Coarse": coarse,
        }  # fmt: skip
        self._ask("POST", "settings", body=values)

    def _inject(self, **fault: object) -> None:
        self._ask("POST", "fault", body=fault)

    def _ask(
        self,
        verb: str,
        what: str,
        query: Mapping[str, object] | None = None,
        body: bytes | Mapping[str, object] | None = None,
    ) -> Any:
        connection = http.client.HTTPSConnection(self.host, context=self.tls, timeout=_ANSWER_S)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes) or body is None else json.dumps(body)
            connection.request(verb, f"/-/{what}?{urllib.parse.urlencode(query or {})}", body=data)
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise SourceError(f"the simulator does not {verb} {what}: {content.decode(errors='replace')}")
        return json.loads(content)


def _machine(found: Mapping[str, Any]) -> Machine:
    disks = [
        Disk(one["Key"], one["Label"], one["File"], one["Links"], Path(one["Raw"]), one["Size"], one["UUID"])
        for one in found["Disks"]
    ]
    snapshots = [
        Snapshot(one["ID"], one["Name"], one["Description"], one["Quiesced"]) for one in found["Snapshots"]
    ]
    return Machine(
        found["ID"], found["Running"], found["ConsolidationNeeded"], tuple(disks), tuple(snapshots)
    )


@contextlib.contextmanager
def simulator(folder: Path) -> Iterator[Simulator]:
    """Run a server that keeps all it has in *folder*; it has ended on return, also when the process dies.

    Raises:
        UnsupportedError: it cannot be built here.
        SourceError: it does not start; the message has the end of its log.
    """
    program = build()
    tls = loopback_certificate(folder)
    command = [
        str(program), "-folder", str(folder), "-user", USER,
        "-certificate", str(tls.certificate), "-key", str(tls.key),
    ]  # fmt: skip
    environment = {**os.environ, "VSPHERE_SIMULATOR_PASSWORD": PASSWORD, "TMPDIR": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        first = process.stdout.readline().decode()
        if not first.startswith("READY "):
            process.wait()
            raise SourceError(f"the vSphere simulator ended: {(folder / 'log').read_text()[-2000:]}")
        yield Simulator(folder, first.split()[1], tls.certificate, process)
    finally:
        process.kill()  # what it has is thrown away
        process.wait()
        process.stdin.close()
        process.stdout.close()


@functools.cache
def build() -> Path:
    """Return the program; build it if there is none of these sources.

    Raises:
        UnsupportedError: Go or govmomi is not installed, or they cannot build it.
    """
    if not tools.installed("go") or not Path(_PACKAGES, "src/github.com/vmware/govmomi").is_dir():
        raise UnsupportedError(
            "the vSphere simulator needs Go and govmomi: "
            "apt-get install golang-go golang-github-vmware-govmomi-dev (Debian, Ubuntu)"
        )
    known = hashlib.sha256(tools.run("go", "version", timeout_s=_ANSWER_S).stdout.encode())
    for source in _sources():
        known.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmkeep" / "vsphere-simulator"
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / known.hexdigest()[:16]
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _build(program)
    return program


def _build(program: Path) -> None:
    """Compile: a minute the first time, some seconds when Go has its own cache of the packages."""
    unfinished = program.with_suffix(".new")
    environment = {
        **os.environ, "GO111MODULE": "off", "GOFLAGS": "", "GOPROXY": "off", "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0", "GOPATH": _PACKAGES,
    }  # fmt: skip
    arguments = ["build", "-trimpath", "-o", str(unfinished), *map(str, _sources())]
    try:
        tools.run("go", *arguments, timeout_s=_BUILD_S, environment=environment)
    except SourceError as error:
        raise UnsupportedError(f"the vSphere simulator cannot be built here: {error}") from error
    unfinished.rename(program)


def _sources() -> Sequence[Path]:
    return sorted(_SOURCES.glob("*.go"))
