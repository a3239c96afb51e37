"""A real SSH server on loopback, with keys of its own, that lets this user in."""

from __future__ import annotations

import contextlib
import getpass
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.disks import scratch, tools
from vmkeep.guests.ssh_connection import Target
from vmkeep.testing.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_START_S: Final = 30.0


@contextlib.contextmanager
def sshd(folder: Path, *, environment: Mapping[str, str] | None = None) -> Iterator[Target]:
    """Run the server for the length of a `with` block; its keys, log and known hosts lie in *folder*.

    Args:
        environment: What sessions find in theirs.
    """
    for name in ("host_key", "key"):
        tools.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name), timeout_s=60)
    Path("/run/sshd").mkdir(exist_ok=True)  # it insists, as root
    port = free_port()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host_key'}\n"
        f"AuthorizedKeysFile {folder / 'key.pub'}\nPidFile none\nStrictModes no\nUsePAM no\nMaxSessions 50\n"
        + "".join(f"SetEnv {name}={value}\n" for name, value in (environment or {}).items())
    )
    command = [tools.find("sshd"), "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _await(port)
        known = f"UserKnownHostsFile={folder / 'known_hosts'}"
        yield Target("127.0.0.1", getpass.getuser(), port, folder / "key", options=(known,))
    finally:
        scratch.end(process)


def _await(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
