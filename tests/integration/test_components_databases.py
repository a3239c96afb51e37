"""Databases of powered-off VMs: rows come back, and what was not stopped cleanly is refused."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from vmkeep.components.health import check_images
from vmkeep.errors import DirtyError, InputError, SourceError, UnsupportedError
from vmkeep.fleet.model import VM
from vmkeep.testing.guests import Volume, build_disk, write_into
from vmkeep.testing.shelf import Shelf
from vmkeep.units import MiB

pytestmark = pytest.mark.integration

BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), Path("/nowhere"))
VERSION = BIN.parent.name
DATA = f"var/lib/postgresql/{VERSION}/main"


def declare(**databases):
    return VM.model_validate(
        {
            "hypervisor": "shelf",
            "disks": [{"name": "root", "size": "130MiB"}],
            "components": {"os": {}, "databases": databases},
            "health": [{"image": True}],
        }
    )


ORDERS = declare(orders={"engine": "postgresql", "database": "orders"})
NOTES = declare(notes={"engine": "sqlite", "path": "/var/lib/notes.db"})


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/os-release").touch()
    (tree / "var/lib").mkdir(parents=True)
    return tree


class Server:
    """A real PostgreSQL on a data directory, run by its own user."""

    def __init__(self, data, run):
        self.data, self.run = data, run

    def command(self, *words):
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *map(str, words)]

    def start(self):
        options = f"-k {self.run} -c listen_addresses= -c fsync=off"
        log = self.run / "log"
        start = self.command(BIN / "pg_ctl", "-D", self.data, "-w", "-l", log, "-o", options, "start")
        subprocess.run(start, check=True, capture_output=True, timeout=60)

    def stop(self):
        stop = self.command(BIN / "pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")
        subprocess.run(stop, check=True, capture_output=True, timeout=60)

    def kill(self):
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        # The others of the server notice, and end by themselves.
        deadline = time.monotonic() + 30
        while subprocess.run(["pgrep", "-f", str(self.run)], capture_output=True, check=False).stdout:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def sql(self, query):
        done = subprocess.run(
            self.command("psql", "-h", self.run, "-AtX", "-d", "postgres", "-c", query),
            check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.stdout.strip()


@pytest.fixture
def run():
    """A folder for sockets that the server's user may enter; those of pytest are closed to it."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    shutil.chown(folder, "postgres", "postgres")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster():
    """A cluster that was made but never started, to copy."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    shutil.chown(folder, "postgres", "postgres")
    server = Server(folder / "main", folder)
    command = server.command(BIN / "initdb", "-D", server.data, "-A", "trust", "-N", "--no-locale")
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    yield server.data
    shutil.rmtree(folder)


def with_rows(cluster, run, tree, *, killed=False, tablespace=None):
    """Put a cluster with rows into a guest's tree."""
    server = Server(run / "main", run)
    subprocess.run(["cp", "-a", cluster, server.data], check=True)
    server.start()
    try:
        if tablespace:
            tablespace.mkdir()
            shutil.chown(tablespace, "postgres", "postgres")
            server.sql(f"create tablespace fast location '{tablespace}'")
        where = "tablespace fast" if tablespace else ""
        server.sql(f"create table orders (id int, what text) {where}")
        server.sql("insert into orders select n, 'order ' || n from generate_series(1, 1000) n")
    finally:
        if killed:
            server.kill()
        else:
            server.stop()
    (tree / DATA).parent.mkdir(parents=True)
    subprocess.run(["cp", "-a", server.data, tree / DATA], check=True)
    shutil.rmtree(server.data)


def rows(data, run):
    """Start a server on a restored data directory and count."""
    server = Server(run / "restored", run)
    shutil.move(data, server.data)
    server.start()
    try:
        return server.sql("select count(*), sum(id), max(what) from orders")
    finally:
        server.stop()


def add(shelf, name, tree):
    shelf.image(name).parent.mkdir(parents=True)
    build_disk(shelf.image(name), [Volume(tree, size=128 * MiB)])


def test_a_cluster_comes_back_with_its_rows(shelf, tree, cluster, run, tmp_path):
    with_rows(cluster, run, tree)
    add(shelf, "db1", tree)

    saved = shelf.save("db1", "databases.orders", ORDERS)
    shelf.restore("db1", saved, ORDERS, folder=tmp_path / "out")
    assert saved.facts["version"] == VERSION
    assert "whole cluster" in saved.facts["note"]
    assert rows(tmp_path / "out" / DATA, run) == "1000|500500|order 999"


def test_a_cluster_comes_back_exactly_over_another_state_of_it(shelf, tree, cluster, run):
    with_rows(cluster, run, tree)
    add(shelf, "db1", tree)
    saved = shelf.save("db1", "databases.orders", ORDERS)
    (tree / DATA / "base/1/99999").write_bytes(b"of a later table")
    (tree / DATA / "global/pg_control").write_bytes(bytes(8192))
    shelf.image("db1").unlink()
    shelf.image("db1").parent.rmdir()
    add(shelf, "db1", tree)

    shelf.restore("db1", saved, ORDERS)
    again = shelf.save("db1", "databases.orders", ORDERS)
    assert again.streams == saved.streams


def test_a_tablespace_elsewhere_is_part_of_it(shelf, tree, cluster, run, tmp_path):
    space = run / "space"
    with_rows(cluster, run, tree, tablespace=space)
    inside = tree / space.relative_to("/")
    inside.parent.mkdir(parents=True)
    shutil.move(space, inside)
    add(shelf, "db1", tree)

    saved = shelf.save("db1", "databases.orders", ORDERS)
    shelf.restore("db1", saved, ORDERS, folder=tmp_path / "out")
    shutil.move(tmp_path / "out" / space.relative_to("/"), space)
    assert rows(tmp_path / "out" / DATA, run) == "1000|500500|order 999"


def test_a_killed_server_is_refused_with_advice(shelf, tree, cluster, run):
    with_rows(cluster, run, tree, killed=True)
    add(shelf, "db1", tree)

    with pytest.raises(DirtyError, match=r"not stopped cleanly \(in production\).*systemctl stop postgresql"):
        shelf.save("db1", "databases.orders", ORDERS)


def test_a_leftover_pid_file_is_refused(shelf, tree, cluster):
    (tree / DATA).parent.mkdir(parents=True)
    subprocess.run(["cp", "-a", cluster, tree / DATA], check=True)
    (tree / DATA / "postmaster.pid").write_text("1\n")
    add(shelf, "db1", tree)

    with pytest.raises(DirtyError, match=r"postmaster\.pid"):
        shelf.save("db1", "databases.orders", ORDERS)


def test_a_guest_without_a_cluster_says_so(shelf, tree):
    add(shelf, "db1", tree)

    with pytest.raises(SourceError, match="none; say its path"):
        shelf.save("db1", "databases.orders", ORDERS)


def test_an_engine_that_needs_a_running_server_is_refused(shelf, tree):
    add(shelf, "db1", tree)

    with pytest.raises(UnsupportedError, match="mariadb is not supported by this version"):
        shelf.save("db1", "databases.shop", declare(shop={"engine": "mariadb"}))


def crashed_sqlite(path):
    """Make a database whose last rows are only in its write-ahead log, as after a power cut."""
    with contextlib.closing(sqlite3.connect(path.with_suffix(".live"))) as live:
        live.execute("pragma journal_mode = wal")
        live.execute("create table notes (id integer primary key, text text)")
        live.executemany("insert into notes (text) values (?)", [(f"note {n}",) for n in range(100)])
        live.commit()
        for suffix in ("", "-wal"):
            shutil.copy(f"{path.with_suffix('.live')}{suffix}", f"{path}{suffix}")
    path.with_suffix(".live").unlink()


def notes(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("select count(*), max(id) from notes").fetchone()


def test_rows_of_a_write_ahead_log_are_saved(shelf, tree, tmp_path):
    crashed_sqlite(tree / "var/lib/notes.db")
    os.chown(tree / "var/lib/notes.db", 33, 33)
    add(shelf, "db1", tree)

    saved = shelf.save("db1", "databases.notes", NOTES)
    shelf.restore("db1", saved, NOTES, folder=tmp_path / "out")
    assert notes(tmp_path / "out/var/lib/notes.db") == (100, 100)
    assert (tmp_path / "out/var/lib/notes.db").stat().st_uid == 33


def test_a_log_of_another_state_does_not_survive_a_restore(shelf, tree):
    crashed_sqlite(tree / "var/lib/notes.db")
    add(shelf, "db1", tree)
    saved = shelf.save("db1", "databases.notes", NOTES)

    shelf.restore("db1", saved, NOTES)
    assert [p for p in shelf.describe("db1", "var/lib", NOTES) if b"notes" in p] == [b"/notes.db"]


def test_a_damaged_sqlite_database_is_refused(shelf, tree):
    path = tree / "var/lib/notes.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("create table notes (id integer primary key, text text)")
        database.executemany("insert into notes (text) values (?)", [("x" * 500,) for _ in range(100)])
        database.commit()
    write_into(path, 3 * 4096, os.urandom(8192))
    add(shelf, "db1", tree)

    with pytest.raises(SourceError, match=r"notes\.db"):
        shelf.save("db1", "databases.notes", NOTES)


def test_a_database_without_a_path_says_what_is_missing(shelf, tree):
    add(shelf, "db1", tree)

    with pytest.raises(InputError, match="path of the SQLite file"):
        shelf.save("db1", "databases.notes", declare(notes={"engine": "sqlite"}))


def test_a_healthy_vm_says_what_was_checked(shelf, tree):
    crashed_sqlite(tree / "var/lib/notes.db")
    add(shelf, "db1", tree)

    shelf.hypervisor.configure("db1", NOTES, apply=True)
    found = check_images(shelf.hypervisor, "db1", NOTES)
    assert [line.split(": ", 2)[-1] for line in found] == ["ext4 is clean", "SQLite is whole"]


def test_an_unhealthy_vm_lists_all_that_is_wrong(shelf, tree):
    (tree / "var/lib/notes.db").write_bytes(b"no database" * 1000)
    add(shelf, "db1", tree)
    shelf.hypervisor.configure("db1", NOTES, apply=True)
    write_into(shelf.image("db1"), MiB + 4096 * 2, os.urandom(4096 * 3))

    with pytest.raises(SourceError, match=r"not healthy: .*partition 1.*; .*"):
        check_images(shelf.hypervisor, "db1", NOTES)
