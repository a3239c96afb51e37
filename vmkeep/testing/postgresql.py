"""A real PostgreSQL server for tests and demos, reachable by a socket in the file system only."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmkeep.errors import SourceError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_S: Final = 60.0
_STOP_S: Final = 60.0
_POLL_S: Final = 0.05


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a temporary folder that belongs to who runs PostgreSQL; its server refuses root."""
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            os.chown(folder, *owner())
        yield folder


def make_cluster(directory: Path, *, superuser: str) -> None:
    """Make the data directory of a server. Small segments of the log: they are saved, too."""
    _run("initdb", "--pgdata", str(directory), "--username", superuser, "--auth", "trust",
         "--encoding", "UTF8", "--locale", "C", "--wal-segsize", "1", "--no-sync")  # fmt: skip


class Ask:
    """A connection to a running server."""

    def __init__(self, sockets: Path, user: str) -> None:
        self._sockets, self._user = sockets, user

    def __call__(self, statement: str) -> str:
        """Carry out a statement, and return the rows as lines.

        Raises:
            SourceError: the server refuses it.
        """
        return _run(
            "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1",
            "--host", str(self._sockets), "--username", self._user, "--dbname", "postgres",
            "--command", statement,
        )  # fmt: skip


@contextmanager
def server(directory: Path, *, superuser: str) -> Iterator[Ask]:
    """Run a server on a data directory, and stop it cleanly.

    Raises:
        SourceError: it does not start, or not stop.
    """
    log = directory.with_name(f"{directory.name}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program("postgres"), "-D", directory, "-k", directory.parent, "-c", "listen_addresses="],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", **_user(),
        )  # fmt: skip
    try:
        ask = Ask(directory.parent, superuser)
        _wait(process, ask, log)
        yield ask
    finally:
        process.send_signal(signal.SIGINT)  # "fast": ends connections, writes everything, stops cleanly
        try:
            code = process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    if code != 0:
        raise SourceError(f"PostgreSQL did not stop cleanly: {log.read_text(errors='replace')[-500:]}")


def program(name: str) -> str:
    """Return PostgreSQL's program of the newest version that is installed.

    Raises:
        UnsupportedError: there is none.
    """
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"),
        key=lambda path: [int(part) for part in path.parts[4].split(".") if part.isdigit()],
    )
    if not found:
        raise UnsupportedError(f"there is no /usr/lib/postgresql/*/bin/{name}: apt-get install postgresql")
    return str(found[-1])


def owner() -> tuple[int, int]:
    """Return the user and group that servers run as: postgres for root, who else calls for themselves.

    Raises:
        UnsupportedError: there is no such user.
    """
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    try:
        found = pwd.getpwnam("postgres")
    except KeyError:
        raise UnsupportedError(
            "there is no user postgres to run the server as: apt-get install postgresql"
        ) from None
    return found.pw_uid, found.pw_gid


def _wait(process: subprocess.Popen[bytes], ask: Ask, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            ask("SELECT 1")
        except SourceError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-500:]
                raise SourceError(f"PostgreSQL does not start: {said}") from error
            time.sleep(_POLL_S)
        else:
            return


def _run(tool: str, *arguments: str) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [program(tool), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_START_S, check=False, cwd="/", **_user(),
    )  # fmt: skip
    if done.returncode:
        raise SourceError(f"{tool} failed: {done.stderr.strip()}")
    return done.stdout


def _user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    user, group = owner()
    return {"user": user, "group": group, "extra_groups": []}
