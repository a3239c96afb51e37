"""SQLite and PostgreSQL with real rows, written and read by the real programs."""

from __future__ import annotations

import hashlib
import os
import pwd
import signal
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from demo.terminal import DemoError

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_S: Final = 60.0
_STOP_S: Final = 60.0
_POLL_S: Final = 0.05
_SCHEMA: Final = "CREATE TABLE stock (item INTEGER PRIMARY KEY, name TEXT NOT NULL, pieces INTEGER NOT NULL)"


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a table."""

    count: int
    digest: str
    """SHA-256 of all of them in order, 64 hex digits."""


def make_stock(path: Path, *, items: int) -> None:
    """Make a SQLite database with so many items."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(_SCHEMA)
    add_to_stock(path, first=1, items=items)


def add_to_stock(path: Path, *, first: int, items: int) -> None:
    """Add items to a SQLite database, and take a piece of item 1."""
    rows = [(number, f"item number {number}", number * 7919 % 1000) for number in range(first, first + items)]
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany("INSERT INTO stock VALUES (?, ?, ?)", rows)
        database.execute("UPDATE stock SET pieces = pieces - 1 WHERE item = 1")


def read_stock(path: Path) -> Rows:
    """Read all rows of a SQLite database."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT item, name, pieces FROM stock ORDER BY item").fetchall()
    return Rows(len(rows), hashlib.sha256(repr(rows).encode()).hexdigest())


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a temporary folder that belongs to who runs PostgreSQL; its server refuses root."""
    with tempfile.TemporaryDirectory(prefix="vmkeep-demo-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            owner = _postgres()
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        yield folder


def make_cluster(directory: Path) -> None:
    """Make the data directory of a server. Small segments of the log: they are saved, too."""
    _run("initdb", "--pgdata", str(directory), "--username", "demo", "--auth", "trust", "--encoding", "UTF8",
         "--locale", "C", "--wal-segsize", "1", "--no-sync")  # fmt: skip
    with server(directory) as ask:
        ask("CREATE TABLE orders (id INT PRIMARY KEY, customer TEXT NOT NULL, cents INT NOT NULL)")


class Ask:
    """A connection to a running server."""

    def __init__(self, sockets: Path) -> None:
        self._sockets = sockets

    def __call__(self, statement: str) -> str:
        """Carry out a statement, and return the rows as lines.

        Raises:
            DemoError: the server refuses it.
        """
        return _run(
            "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1",
            "--host", str(self._sockets), "--username", "demo", "--dbname", "postgres",
            "--command", statement,
        )  # fmt: skip

    def add_orders(self, *, first: int, count: int) -> None:
        """Insert rows."""
        self(
            f"INSERT INTO orders SELECT n, 'customer ' || n % 997, n * 7919 % 100000 "  # noqa: S608  (numbers)
            f"FROM generate_series({first}, {first + count - 1}) AS n"
        )

    def orders(self) -> Rows:
        """Read all rows."""
        rows = self("SELECT id, customer, cents FROM orders ORDER BY id").splitlines()
        return Rows(len(rows), hashlib.sha256("\n".join(rows).encode()).hexdigest())


@contextmanager
def server(directory: Path) -> Iterator[Ask]:
    """Run a server on a data directory, reachable by a socket in the file system only, and stop it cleanly.

    Raises:
        DemoError: it does not start, or not stop.
    """
    log = directory.with_name(f"{directory.name}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program("postgres"), "-D", directory, "-k", directory.parent, "-c", "listen_addresses="],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", **_user(),
        )  # fmt: skip
    try:
        ask = Ask(directory.parent)
        _wait(process, ask, log)
        yield ask
    finally:
        process.send_signal(signal.SIGINT)  # "fast": ends connections, writes everything, stops cleanly
        try:
            code = process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    if code != 0:
        raise DemoError(f"PostgreSQL did not stop cleanly: {log.read_text(errors='replace')[-500:]}")


def _wait(process: subprocess.Popen[bytes], ask: Ask, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            ask("SELECT 1")
        except DemoError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-500:]
                raise DemoError(f"PostgreSQL does not start: {said}") from error
            time.sleep(_POLL_S)
        else:
            return


def _run(tool: str, *arguments: str) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [program(tool), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_START_S, check=False, cwd="/", **_user(),
    )  # fmt: skip
    if done.returncode:
        raise DemoError(f"{tool} failed: {done.stderr.strip()}")
    return done.stdout


def program(name: str) -> str:
    """Return PostgreSQL's program of the newest version that is installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"),
        key=lambda path: [int(part) for part in path.parts[4].split(".") if part.isdigit()],
    )
    if not found:
        raise DemoError(f"there is no /usr/lib/postgresql/*/bin/{name}: apt-get install postgresql")
    return str(found[-1])


def _postgres() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        raise DemoError(
            "there is no user postgres to run the server as: apt-get install postgresql"
        ) from None


def _user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    owner = _postgres()
    return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
