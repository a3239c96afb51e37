"""A real guest for tests: the distribution's kernel and a RAM disk with BusyBox and the QEMU guest agent.

It boots in some seconds, also without KVM. Inside:

    /mnt/vda, vdb, ...   each virtio disk that holds ext4 (or whose first partition does); /data is the first
    /data/boot           run at the end of the boot, if it is there and executable; or /data/start, on a
                         disk that boots by itself, where /boot is a folder
    /data/www            served on port 80, if it is there
    eth0                 by DHCP, if there is an adapter; with the name server that is told
    port 22              an SSH server, if the boot files were built with a key
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import zstandard

from vmkeep.disks import scratch, tools
from vmkeep.errors import SourceError, UnsupportedError
from vmkeep.guests.ssh_connection import Target
from vmkeep.testing.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMAND_LINE: Final = "console=ttyS0 panic=-1 quiet mitigations=off nokaslr"
AGENT_PORT: Final = "org.qemu.guest_agent.0"
_START_S: Final = 30.0
_MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_net")
_INIT: Final = r"""#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/virtio-ports /dev/shm; mount -t tmpfs tmp /tmp; mount -t tmpfs run /run
for module in $(cat /modules/order); do insmod /modules/$module; done
for disk in /dev/vd?; do
    [ -b "$disk" ] || continue
    where=/mnt/${disk##*/}; mkdir -p "$where"
    mount -t ext4 "$disk" "$where" 2>/dev/null || mount -t ext4 "${disk}1" "$where" 2>/dev/null ||
        rmdir "$where"
done
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    udhcpc -i eth0 -q -t 10 -T 1 -s /bin/on-address >/dev/null 2>&1 &
fi
if [ -d /etc/ssh ]; then mkdir -p /run/sshd; /sbin/sshd -E /run/sshd.log; fi
[ -d /data/www ] && httpd -h /data/www
for start in /data/boot /data/start; do [ -f $start ] && [ -x $start ] && $start & done
channel=/dev/virtio-ports/org.qemu.guest_agent.0
tries=0
while [ ! -e $channel ] && [ $tries -lt 100 ]; do
    for port in /sys/class/virtio-ports/*; do
        name=$(cat "$port/name" 2>/dev/null)
        [ -n "$name" ] && ln -sf "/dev/${port##*/}" "/dev/virtio-ports/$name"
    done
    tries=$((tries + 1)); usleep 50000
done
echo GUEST-UP
while :; do
    qemu-ga -m virtio-serial -p $channel -t /run -f /run/qga.pid -l /run/qga.log
    sleep 1
done
"""
_ON_ADDRESS: Final = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr flush dev "$interface"; ip addr add "$ip/${mask:-24}" dev "$interface"
[ -n "$dns" ] && printf 'nameserver %s\n' $dns >/etc/resolv.conf
[ -n "$router" ] && ip route add default via "$router"
exit 0
"""
_SHUTDOWN: Final = "#!/bin/sh\nsync; umount -a -r -t ext4; exec poweroff -f\n"
_SSHD: Final = """HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
StrictModes no
"""


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What a hypervisor boots a tiny guest from, by `-kernel`, `-initrd` and `-append`."""

    kernel: Path
    initramfs: Path
    command_line: str = COMMAND_LINE
    host_key: str | None = None
    """The public key of its SSH server, as in a file of known hosts: type and key."""


@dataclass(frozen=True, slots=True)
class RunningGuest:
    """A tiny guest under plain QEMU."""

    process: subprocess.Popen[bytes]
    agent_socket: Path
    console: Path
    """What it wrote on its serial console."""
    monitor: Path
    """A QMP socket."""


def build(folder: Path, *, authorized_key: str | None = None) -> BootFiles:
    """Build the boot files in *folder*; takes a second.

    Args:
        authorized_key: Who may log in as root by SSH, as in authorized_keys; None: no SSH server.

    Raises:
        UnsupportedError: a kernel or program is not installed; says which package has it.
    """
    kernels = [*Path("/boot").glob("vmlinuz-*-generic"), *Path("/boot").glob("vmlinuz-*-cloud-amd64")]
    if not kernels:
        raise UnsupportedError(
            "no kernel in /boot for a tiny guest: apt-get install linux-image-cloud-amd64 (Debian) "
            "or linux-image-virtual (Ubuntu)"
        )
    version = kernels[-1].name.removeprefix("vmlinuz-")
    archive = _Archive()
    for name in ("dev", "proc", "sys", "tmp", "run", "mnt", "root", "var", "etc"):
        archive.folder(name)
    archive.link("data", "mnt/vda")
    _busybox(archive)
    _modules(archive, Path("/lib/modules") / version)
    archive.program("bin/qemu-ga", Path(_find("qemu-ga", "qemu-guest-agent")))
    archive.file("init", _INIT.encode(), 0o755)
    archive.file("bin/on-address", _ON_ADDRESS.encode(), 0o755)
    archive.file("sbin/shutdown", _SHUTDOWN.encode(), 0o755)
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nsshd:x:100:100::/run/sshd:/bin/false\n")
    archive.file("etc/group", b"root:x:0:\nsshd:x:100:\n")
    host_key = _ssh_server(archive, folder, authorized_key) if authorized_key else None
    initramfs = folder / "tiny.initramfs"
    initramfs.write_bytes(gzip.compress(archive.close(), 1))
    return BootFiles(kernels[-1], initramfs, host_key=host_key)


@contextlib.contextmanager
def running(
    files: BootFiles,
    folder: Path,
    *,
    disks: Sequence[tuple[Path, str]] = (),
    forward: Sequence[tuple[int, int]] = (),
    memory: str = "256M",
) -> Iterator[RunningGuest]:
    """Run a tiny guest under QEMU for the length of a `with` block; it boots meanwhile.

    Args:
        folder: For its sockets and console; a short path.
        disks: Path and format of each.
        forward: Ports of this host's loopback and of the guest; without any it has no network adapter.
    """
    guest_socket, console, monitor = folder / "agent.sock", folder / "console.log", folder / "monitor.sock"
    command = [
        tools.find("qemu-system-x86_64"), "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", memory,
        "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{console}",
        "-kernel", str(files.kernel), "-initrd", str(files.initramfs), "-append", files.command_line,
        "-chardev", f"socket,id=agent,path={guest_socket},server=on,wait=off", "-device", "virtio-serial",
        "-device", f"virtserialport,chardev=agent,name={AGENT_PORT}",
        "-qmp", f"unix:{monitor},server=on,wait=off",
    ]  # fmt: skip
    for path, format in disks:  # noqa: A001  (the word of the fleet file)
        command += ["-drive", f"file={path},format={format},if=virtio,discard=unmap"]
    if forward:
        ports = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for here, there in forward)
        command += ["-netdev", f"user,id=net{ports}", "-device", "virtio-net,netdev=net,romfile="]
    log = folder / "qemu.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _await(monitor, process, log)
        yield RunningGuest(process, guest_socket, console, monitor)
    finally:
        scratch.end(process)


@contextlib.contextmanager
def with_ssh(
    folder: Path,
    *,
    disks: Sequence[tuple[Path, str]] = (),
    forward: Sequence[tuple[int, int]] = (),
) -> Iterator[tuple[RunningGuest, Target]]:
    """Run a tiny guest with an SSH server, as `running` does; also say how to log in, once it has booted."""
    key, known = folder / "key", folder / "known_hosts"
    tools.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key), timeout_s=60)
    files = build(folder, authorized_key=key.with_suffix(".pub").read_text().strip())
    port = free_port()
    known.write_text(f"[127.0.0.1]:{port} {files.host_key}\n")
    target = Target("127.0.0.1", "root", port, key, options=(f"UserKnownHostsFile={known}",))
    with running(files, folder, disks=disks, forward=[(port, 22), *forward]) as machine:
        yield machine, target


def _await(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SourceError(f"QEMU did not start: {tools.last_words(log.read_text(errors='replace'))}")
        time.sleep(0.01)


def _find(tool: str, package: str) -> str:
    if not tools.installed(tool):
        raise UnsupportedError(f"{tool} is not installed: apt-get install {package} (Debian, Ubuntu)")
    return tools.find(tool)


def _busybox(archive: _Archive) -> None:
    path = _find("busybox", "busybox-static")
    if b"not a dynamic" not in subprocess.run(["ldd", path], capture_output=True, check=False).stderr:
        raise UnsupportedError("busybox needs libraries: apt-get install busybox-static (Debian, Ubuntu)")
    archive.file("bin/busybox", Path(path).read_bytes(), 0o755)
    for name in subprocess.run([path, "--list"], capture_output=True, check=True).stdout.decode().split():
        if name != "busybox":
            archive.link(f"bin/{name}", "busybox")


def _modules(archive: _Archive, folder: Path) -> None:
    """Put in the drivers and what they need, and the order in which they are loaded."""
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[Path(path).name.partition(".")[0].replace("-", "_")] = [path, *rest.split()]
    order: dict[str, None] = {}
    for name in _MODULES:
        for path in reversed(needs.get(name, ())):  # what is not listed is built in
            order.setdefault(path)
    for path in order:
        archive.file(f"modules/{_plain(path)}", _unpacked(folder / path))
    archive.file("modules/order", "\n".join(map(_plain, order)).encode())


def _plain(path: str) -> str:
    return Path(path).name.removesuffix(".xz").removesuffix(".zst")


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().decompressobj().decompress(content)
    return content


def _ssh_server(archive: _Archive, folder: Path, authorized_key: str) -> str:
    archive.program("sbin/sshd", Path(_find("sshd", "openssh-server")))
    key = folder / "host_key"
    key.unlink(missing_ok=True)
    tools.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key), timeout_s=60)
    archive.file("etc/ssh/host_key", key.read_bytes(), 0o600)
    archive.file("etc/ssh/authorized_keys", authorized_key.encode() + b"\n")
    archive.file("etc/ssh/sshd_config", _SSHD.encode())
    return key.with_suffix(".pub").read_text().strip()


class _Archive:
    """A cpio archive as the kernel takes it, all of it root's.

    See: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
    """

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._known: set[str] = set()

    def folder(self, name: str) -> None:
        """Add a folder, and those above it."""
        if name and name not in self._known:
            self._above(name)
            self._entry(name, stat.S_IFDIR | (0o1777 if name == "tmp" else 0o755), b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file; one that is there already stays."""
        if name not in self._known:
            self._above(name)
            self._entry(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._above(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def program(self, name: str, path: Path) -> None:
        """Add a program with the libraries it needs, where its loader finds them."""
        self.file(name, path.read_bytes(), 0o755)
        told = subprocess.run(["ldd", str(path)], capture_output=True, check=True, text=True).stdout
        for word in told.split():
            if word.startswith("/"):
                self.file(word.lstrip("/"), Path(word).read_bytes(), 0o755)

    def close(self) -> bytes:
        """Return the archive."""
        self._entry("TRAILER!!!", 0, b"")
        return self._out.getvalue()

    def _above(self, name: str) -> None:
        self.folder(os.path.dirname(name))  # noqa: PTH120  (names in an archive, not paths of this host)

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._known.add(name)
        encoded = name.encode() + b"\0"
        numbers = (len(self._known), mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._out.write(b"070701" + b"".join(b"%08x" % number for number in numbers))
        for part in (encoded, content):
            self._out.write(part)
            self._out.write(bytes(-self._out.tell() % 4))
