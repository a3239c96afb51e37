"""One SSH connection to a guest, through the OpenSSH client: made once, shared by all sessions in it.

The user's own configuration, agent and known hosts count; an unknown host is never trusted by itself.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.disks import scratch, tools
from vmkeep.errors import AccessError, TemporaryError, VmkeepError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_OPTIONS: Final = (
    "BatchMode=yes", "LogLevel=ERROR", "RequestTTY=no", "EscapeChar=none", "RemoteCommand=none",
    "ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "PermitLocalCommand=no",
    "ControlPersist=no", "ServerAliveInterval=5", "ServerAliveCountMax=3",
)  # fmt: skip
_POLL_S: Final = 0.01
_UNKNOWN: Final = ("host key verification failed", "host identification has changed")
_REFUSED: Final = ("permission denied", "too many authentication failures", "unprotected private key")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to log in, and as whom; what is None is as the SSH configuration says."""

    host: str
    user: str | None = None
    port: int | None = None
    key_file: Path | None = None
    options: tuple[str, ...] = ()
    """More options, each as `ssh -o` takes it."""

    def arguments(self) -> list[str]:
        """Return the options of the client."""
        found = [argument for option in (*self.options, *_OPTIONS) for argument in ("-o", option)]
        if self.user is not None:
            found += ["-l", self.user]
        if self.port is not None:
            found += ["-p", str(self.port)]
        if self.key_file is not None:
            found += ["-i", str(self.key_file.expanduser()), "-o", "IdentitiesOnly=yes"]
        return found


class Connection:
    """Made when first used, and made anew when it was lost."""

    def __init__(self, target: Target, *, name: str) -> None:
        self._target = target
        self._name = name
        self._open: contextlib.ExitStack | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: Path | None = None

    def session(self, words: Sequence[str], *, timeout_s: float) -> subprocess.Popen[bytes]:
        """Start a command in the guest; its three pipes are the process's.

        Raises:
            AccessError: the guest lets us not in, or is not who it was.
            TemporaryError: there is no connection in time.
        """
        socket = self._connected(time.monotonic() + timeout_s)
        # A session whose connection was lost would make one of its own; it shall fail instead.
        alone = ["-o", "ControlMaster=no", "-o", "ProxyCommand=false"]
        command = [
            tools.find("ssh"), *alone, *self._target.arguments(), "-S", str(socket), "--", self._target.host,
            shlex.join(words),
        ]  # fmt: skip
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us
        )  # fmt: skip

    def close(self) -> None:
        """End the connection, and with it all sessions."""
        opened, self._open, self._process = self._open, None, None
        if opened is not None:
            opened.close()

    def _connected(self, deadline: float) -> Path:
        if self._process is None or self._process.poll() is not None or self._socket is None:
            self.close()
            self._socket = self._connect(deadline)
        return self._socket

    def _connect(self, deadline: float) -> Path:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(scratch.scratch_folder())
            socket, log = folder / "ssh", folder / "log"
            left = max(1, round(deadline - time.monotonic()))
            command = [
                tools.find("ssh"), "-o", "ControlMaster=yes", "-o", f"ConnectTimeout={left}",
                *self._target.arguments(), "-S", str(socket), "-N", "--", self._target.host,
            ]  # fmt: skip
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            stack.callback(scratch.end, process)
            (folder / "ssh.pid").write_text(str(process.pid))
            # The client makes the socket after it has logged in.
            while not socket.exists():
                if process.poll() is not None:
                    raise self._refusal(log.read_text(errors="replace"))
                if time.monotonic() > deadline:
                    raise TemporaryError(f"{self._name}: no SSH connection to {self._target.host} in time")
                time.sleep(_POLL_S)
            self._process = process
            self._open = stack.pop_all()
        return socket

    def _refusal(self, log: str) -> VmkeepError:
        words = tools.last_words(log)
        where = f"{self._name}: SSH to {self._target.host}"
        if any(sign in log.lower() for sign in _UNKNOWN):
            return AccessError(
                f"{where}: its host key is not the known one: {words}. Log in once by hand, or put the key "
                "into ~/.ssh/known_hosts"
            )
        if any(sign in log.lower() for sign in _REFUSED):
            return AccessError(f"{where}: {words}")
        return TemporaryError(f"{where}: {words}")
