"""A Prefect server and a worker in the background, for one machine.

The server listens on the loopback interface only; its database lies in the state folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from deployments import POOL
from flows import settings
from vmkeep.errors import TemporaryError

_START_S: Final = 120.0
_STOP_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Running:
    """What `up` started, or found."""

    url: str
    """The API's address."""
    server: int
    worker: int
    """Process ids; 0 for one that was not started."""
    log: str

    @property
    def ui(self) -> str:
        """The address for a browser."""
        return self.url.removesuffix("/api")


def up(*, port: int = 4200) -> Running:
    """Start a server and a worker that outlive this process; nothing happens when they run already.

    Args:
        port: 0 takes any free one.

    Raises:
        TemporaryError: the port is taken, or the server did not answer in time.
    """
    found = status()
    if found is not None:
        return found
    down()
    port = port or _free_port()
    if _answers(port):
        raise TemporaryError(f"port {port} of 127.0.0.1 is in use: choose another with --port")
    folder = settings.server_file().parent / "server"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    url = f"http://127.0.0.1:{port}/api"
    environment = os.environ | {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": url,
        # The UI asks for the API where it was told to, which is not its own port by default.
        "PREFECT_UI_API_URL": url,
    }
    log = folder / "log"
    server = _spawn(["server", "start", "--host", "127.0.0.1", "--port", str(port)], environment, log)
    # Noted at once, so that `down` can end what was started, whatever happens next.
    _note(Running(url, server, 0, str(log)))
    _wait(url, server, log)
    worker = _spawn(["worker", "start", "--pool", POOL, "--type", "process"], environment, log)
    running = Running(url, server, worker, str(log))
    _note(running)
    return running


def status() -> Running | None:
    """Return what runs, if it answers."""
    noted = _noted()
    if noted is None or not (_alive(noted.server) and _alive(noted.worker) and _healthy(noted.url)):
        return None
    return noted


def down() -> bool:
    """Stop the worker, then the server; flow runs that are under way are told to stop first.

    Returns:
        Whether anything was running.
    """
    noted = _noted()
    if noted is None:
        return False
    ended = [_stop(pid) for pid in (noted.worker, noted.server)]
    settings.server_file().unlink(missing_ok=True)
    return any(ended)


def _noted() -> Running | None:
    try:
        return Running(**json.loads(settings.server_file().read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _note(running: Running) -> None:
    settings.server_file().write_text(json.dumps(asdict(running)))


def _spawn(arguments: list[str], environment: dict[str, str], log: Path) -> int:
    """Start a process that outlives this one, in a session of its own; return its id."""
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "prefect", *arguments],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
            ],
            setsid=True,
        )


def _wait(url: str, server: int, log: Path) -> None:
    limit = time.monotonic() + _START_S
    while time.monotonic() < limit:
        # Not `_alive`: the command line of a process is empty for a moment after it was spawned.
        if os.waitpid(server, os.WNOHANG) != (0, 0):
            raise TemporaryError(f"Prefect's server ended before it answered; its log is {log}")
        if _healthy(url):
            return
        time.sleep(0.3)
    raise TemporaryError(f"Prefect's server did not answer within {_START_S:.0f} s; its log is {log}")


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2):  # noqa: S310  (we wrote the address)
            return True
    except (OSError, urllib.error.URLError):
        return False


def _alive(pid: int) -> bool:
    """Tell whether the process runs and is ours: a pid may have been given to another."""
    if pid <= 0:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"prefect" in command


def _stop(pid: int) -> bool:
    if not _alive(pid):
        return False
    os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + _STOP_S
    while _alive(pid) and time.monotonic() < limit:
        time.sleep(0.1)
    if _alive(pid):
        os.killpg(pid, signal.SIGKILL)
    return True


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
