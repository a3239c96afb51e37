"""SQLite and PostgreSQL with real rows, written and read by the real programs."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.testing import postgresql

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_USER: Final = "demo"
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


def make_cluster(directory: Path) -> None:
    """Make the data directory of a server with an empty table of orders."""
    postgresql.make_cluster(directory, superuser=_USER)
    with server(directory) as shop:
        shop.ask("CREATE TABLE orders (id INT PRIMARY KEY, customer TEXT NOT NULL, cents INT NOT NULL)")


class Shop:
    """A running server with orders."""

    def __init__(self, ask: postgresql.Ask) -> None:
        self.ask = ask

    def add_orders(self, *, first: int, count: int) -> None:
        """Insert rows."""
        self.ask(
            f"INSERT INTO orders SELECT n, 'customer ' || n % 997, n * 7919 % 100000 "  # noqa: S608  (numbers)
            f"FROM generate_series({first}, {first + count - 1}) AS n"
        )

    def orders(self) -> Rows:
        """Read all rows."""
        rows = self.ask("SELECT id, customer, cents FROM orders ORDER BY id").splitlines()
        return Rows(len(rows), hashlib.sha256("\n".join(rows).encode()).hexdigest())


@contextmanager
def server(directory: Path) -> Iterator[Shop]:
    """Run a server on a data directory, and stop it cleanly.

    Raises:
        SourceError: it does not start, or not stop.
    """
    with postgresql.server(directory, superuser=_USER) as ask:
        yield Shop(ask)
