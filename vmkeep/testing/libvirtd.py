"""A private libvirt daemon for tests: all of it is in one folder, and nothing of the host's is used.

As root it is the system's daemon in a mount namespace of its own, in which /etc/libvirt, /run/libvirt
and what it keeps below /var are folders of the test. Otherwise it is the user's with other XDG folders.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import libvirt

from vmkeep.disks import scratch, tools
from vmkeep.errors import SourceError, UnsupportedError
from vmkeep.hypervisors.libvirt.connection import shared
from vmkeep.testing import reaper

if TYPE_CHECKING:
    from collections.abc import Iterator

_READY_S: Final = 120.0
"""The first answer comes when libvirt has tried what every QEMU of the host can do."""
_QEMU_CONF: Final = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
security_default_confined = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
_PID: Final = "libvirtd.pid"
_USER_CONF: Final = 'security_driver = "none"\nnamespaces = []\nstdio_handler = "file"\n'
_LIBVIRTD_CONF: Final = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
log_level = 3
log_outputs = "3:file:{folder}/libvirtd.log"
host_uuid = "{uuid}"
"""
_LET_GO: Final = """{
    while read -r _ point type _; do
        case "$type $point" in fuse* | */vmkeep-*) umount -l "$point" ;; esac
    done </proc/mounts
    true
}"""
"""Our mounts of this moment are in it, too: whoever unmounts one would wait until the daemon has ended."""
_BOUND: Final = {
    "etc": "/etc/libvirt", "run": "/run/libvirt", "lib": "/var/lib/libvirt", "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}  # fmt: skip


@dataclass(slots=True)
class Libvirtd:
    """A running daemon."""

    folder: Path
    """A short path: sockets lie in it."""
    uri: str
    processes: list[subprocess.Popen[bytes]]
    """Each has a daemon as its child, or the VMs of one that was killed; the last one is at work."""

    @property
    def pools(self) -> Path:
        """A folder for the folders of storage pools."""
        return self.folder / "pools"

    @property
    def sockets(self) -> Path:
        """A folder for the sockets of backup jobs."""
        return self.folder / "sockets"

    @property
    def connection(self) -> libvirt.virConnect:
        """An open connection."""
        return shared(self.uri).get()

    def kill(self) -> None:
        """Kill the daemon, as a crash would; its VMs go on."""
        daemon = int((self.folder / _PID).read_text())
        os.kill(daemon, signal.SIGKILL)
        while scratch.started(daemon):
            time.sleep(0.01)

    def restart(self) -> None:
        """Start a daemon that was killed."""
        self.processes.append(_start(self.folder))
        _wait(self)

    def qemu(self, name: str) -> int:
        """Return the process id of a running VM."""
        where = "run/qemu" if os.geteuid() == 0 else "runtime/libvirt/qemu/run"
        return int((self.folder / where / f"{name}.pid").read_text())

    def define_pool(self, name: str, folder: Path | None = None) -> Path:
        """Make a storage pool that is a folder, and return that."""
        path = folder or self.pools / name
        path.mkdir(parents=True, exist_ok=True)
        pool = self.connection.storagePoolDefineXML(
            f"<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>"
        )
        pool.create()
        return path

    def define_network(self, name: str) -> None:
        """Make a network that no bridge belongs to, for VMs that are only defined."""
        self.connection.networkDefineXML(f"<network><name>{name}</name></network>")

    def clear(self) -> None:
        """End and remove all VMs, pools and networks, with their files."""
        host = self.connection
        for domain in host.listAllDomains():
            with contextlib.suppress(libvirt.libvirtError):
                domain.destroy()
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            )
        for pool in host.listAllStoragePools():
            with contextlib.suppress(libvirt.libvirtError):
                pool.destroy()
            pool.undefine()
        for network in host.listAllNetworks():
            kept = network.isPersistent()
            with contextlib.suppress(libvirt.libvirtError):
                network.destroy()
            if kept:
                network.undefine()
        shutil.rmtree(self.pools, ignore_errors=True)


@contextlib.contextmanager
def libvirtd(folder: Path) -> Iterator[Libvirtd]:
    """Run a daemon that keeps all it has in *folder* (a short path); it and its VMs have ended on return.

    It is a host of its own: VMs can be migrated from one to another.

    Raises:
        UnsupportedError: libvirtd is not installed.
        SourceError: it does not start; the message has the end of its log.
    """
    _write_configuration(folder)
    if os.geteuid() == 0:
        uri = f"qemu+unix:///system?socket={folder}/run/libvirt-sock"
    else:
        uri = f"qemu+unix:///session?socket={folder}/runtime/libvirt/libvirt-sock"
    server = Libvirtd(folder, uri, [_start(folder)])
    try:
        _wait(server)
        try:
            yield server
        finally:
            server.clear()
    finally:
        _end_guests(folder)
        for process in reversed(server.processes):
            scratch.end(process)


def _write_configuration(folder: Path) -> None:
    if os.geteuid() == 0:
        for name in _BOUND:
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "log" / "qemu").mkdir(exist_ok=True)
        etc, text = folder / "etc", _QEMU_CONF
    else:
        etc, text = folder / "config" / "libvirt", _USER_CONF
        etc.mkdir(parents=True, exist_ok=True)
        (folder / "runtime").mkdir(mode=0o700, exist_ok=True)
    (etc / "qemu.conf").write_text(text)
    (etc / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(folder=folder, uuid=uuid.uuid4()))


def _start(folder: Path) -> subprocess.Popen[bytes]:
    if not tools.installed("libvirtd"):
        raise UnsupportedError(
            "libvirtd is not installed: apt-get install libvirt-daemon-system (Debian, Ubuntu)"
        )
    environment = dict(os.environ)
    command = [sys.executable, reaper.__file__, tools.find("libvirtd"), "--pid-file", str(folder / _PID)]
    if os.geteuid() == 0:
        binds = [
            f"mkdir -p {there} && mount --bind {folder / here} {there}" for here, there in _BOUND.items()
        ]
        script = " && ".join(["mount --make-rprivate /", _LET_GO, *binds, 'exec "$@"'])
        command = ["unshare", "--mount", "sh", "-c", script, "libvirtd", *command]
    else:
        environment |= {
            "XDG_RUNTIME_DIR": str(folder / "runtime"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_DATA_HOME": str(folder / "data"),
        }
    with (folder / "start.log").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _wait(server: Libvirtd) -> None:
    deadline = time.monotonic() + _READY_S
    # What is not there yet is no error; libvirt would print it.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    last: object = ""
    process = server.processes[-1]
    while process.poll() is None and time.monotonic() < deadline:
        try:
            libvirt.open(server.uri).close()
        except libvirt.libvirtError as error:
            last = error
            time.sleep(0.05)
        else:
            return
    logs = "".join(
        (server.folder / name).read_text(errors="replace")[-2000:]
        for name in ("start.log", "libvirtd.log")
        if (server.folder / name).exists()
    )
    how = "ended" if process.poll() is not None else f"did not answer within {_READY_S:.0f} s"
    raise SourceError(f"libvirtd {how}: {logs.strip() or last}")


def _end_guests(folder: Path) -> None:
    """Kill the VMs that are still there; their sockets and files lie in the folder."""
    for file in folder.rglob("*.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(file.read_text())
            if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
