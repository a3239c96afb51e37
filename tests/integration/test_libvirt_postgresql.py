"""A real PostgreSQL in a running guest, saved under load with the two guests that depend on it."""

import contextlib
import itertools
import tempfile
import threading
import time
from pathlib import Path

import pytest

from vmkeep.cli import main
from vmkeep.disks import tools
from vmkeep.disks.raw import RawTarget
from vmkeep.errors import GuestError, TemporaryError
from vmkeep.guests.agent import AgentGuest
from vmkeep.operations import repositories
from vmkeep.testing import database_guest, postgresql, tiny_guest
from vmkeep.testing.guests import Volume, build_filesystem
from vmkeep.testing.rack import Rack
from vmkeep.units import MiB

pytestmark = pytest.mark.integration

COUNT = "SELECT count(*), coalesce(max(id), 0) FROM orders"
SHOP = f"""\
vms:
  db1:
    disks: [{{name: root, size: {database_guest.SIZE // MiB}MiB}}]
    guest: {{agent: true}}
    components: {{os: {{}}, databases: {{orders: {{engine: postgresql}}}}}}
  app1: {{disks: [{{name: root, size: 32MiB}}], guest: {{agent: true}}, depends_on: [db1]}}
  web1: {{disks: [{{name: root, size: 32MiB}}], guest: {{agent: true}}, depends_on: [app1]}}
consistency_groups: {{shop: {{vms: [db1, app1, web1]}}}}
"""


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))


@pytest.fixture
def shop(libvirtd, tmp_path):
    """A fleet of three running guests; in the database's a server with an empty table of orders."""
    rack = Rack(tmp_path, libvirtd, SHOP)
    database_guest.build(
        tmp_path / "db1.raw",
        ["CREATE TABLE orders (id INT PRIMARY KEY)", "CREATE TABLE noise (text TEXT)"],
    )
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "counter").write_text("0")
    build_filesystem(tmp_path / "other.raw", Volume(tree, size=32 * MiB))
    boot = tiny_guest.build(tmp_path)
    for vm in ("db1", "app1", "web1"):
        rack.fill(vm, "root", tmp_path / ("db1.raw" if vm == "db1" else "other.raw"))
        rack.boot_from(vm, boot)
        rack.domain(vm).create()
    guests = {vm: AgentGuest(rack.hypervisor.agent(vm), name=vm) for vm in ("db1", "app1", "web1")}
    for vm, guest in guests.items():
        until(guest.ping, rack, vm)
    until(lambda: ask(guests["db1"], COUNT), rack, "db1")
    return rack, guests


def until(answers, rack, vm):
    deadline = time.monotonic() + 120
    while True:
        try:
            return answers()
        except (GuestError, TemporaryError):
            assert time.monotonic() < deadline, rack.console(vm)
            time.sleep(0.2)


def ask(guest, statement):
    done = guest.run(database_guest.asking(statement), timeout_s=30)
    if done.code:
        raise GuestError(done.err.decode(errors="replace"))
    return done.out.decode().strip()


@contextlib.contextmanager
def load(guests):
    """Order, in the database first, then count it in the application, then in the web, over and over."""
    stop = threading.Event()
    noise = "INSERT INTO noise SELECT repeat(md5(random()::text), 20) FROM generate_series(1, 50)"

    def work():
        for number in itertools.count(1):
            count = f"echo {number} > /data/next && mv /data/next /data/counter && sync"
            order = f"INSERT INTO orders VALUES ({number}) ON CONFLICT DO NOTHING; {noise}"  # noqa: S608  (numbers)
            for vm in ("db1", "app1", "web1"):
                command = database_guest.asking(order) if vm == "db1" else ["/bin/sh", "-c", count]
                while not stop.is_set():
                    try:
                        if guests[vm].run(command, timeout_s=30).code == 0:
                            break
                    except (GuestError, TemporaryError):
                        time.sleep(0.01)  # it stands still
            if stop.is_set():
                return

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join(60)


def moments(rack, number):
    """Return how many orders the three have seen in the recovery points of one run."""
    found = []
    with repositories.open_repository(rack.file) as repository, tempfile.TemporaryDirectory() as folder:
        for vm in ("db1", "app1", "web1"):
            ref = repository.points(vm)[number].components["os"].disks["root"]
            copy = Path(folder) / f"{vm}.raw"
            with RawTarget(copy, size=ref.size) as target:
                repository.restore_disk(ref, target)
            if vm == "db1":
                count, last = database_guest.rows(copy, COUNT).split("|")
                assert count == last  # none is missing between the first and the last
                found.append(int(count))
            else:
                found.append(int(tools.run("debugfs", "-R", "cat counter", str(copy), timeout_s=60).stdout))
    return found


def test_a_database_under_load_is_at_one_moment_with_those_who_depend_on_it_and_comes_back(shop):
    rack, guests = shop
    with load(guests):
        reports = []
        for _ in range(3):
            time.sleep(1)
            reports.append(rack.run("backup"))
    assert [report.exit_code for report in reports] == [0, 0, 0], [report.errors for report in reports]

    seen = [moments(rack, number) for number in range(3)]
    assert all(web <= app <= orders <= web + 1 for orders, app, web in seen), seen
    assert 0 < seen[0][0] < seen[2][0]
    full, *later = [rack.read(report, "db1") for report in reports]
    assert all(0 < one < full / 2 for one in later)

    # The middle one, as another machine: its server recovers, and answers.
    middle = rack.points("db1")[1].session
    report = rack.run("restore", targets=("db1/os",), points={"db1": middle}, rename={"db1": "db2"})
    assert report.exit_code == 0, report.errors
    restored = AgentGuest(rack.hypervisor.agent("db2"), name="db2")
    assert until(lambda: ask(restored, COUNT), rack, "db2") == f"{seen[1][0]}|{seen[1][0]}"
    ask(restored, "INSERT INTO orders VALUES (-1)")  # and works

    # The cluster alone, as files: a server of another machine recovers from them.
    with postgresql.private_folder() as private:
        to = private / "out"
        arguments = ["restore", "db1/databases.orders", "--point", f"db1={middle}", "--to", str(to)]
        assert main([*arguments, "--fleet", str(rack.path)]) == 0
        (cluster,) = [path.parent for path in to.rglob("PG_VERSION") if path.parent.name == "main"]
        copy = private / "main"
        cluster.rename(copy)
        database_guest.own(copy)
        with postgresql.server(copy, superuser="shop") as server:
            assert server(COUNT).strip() == f"{seen[1][0]}|{seen[1][0]}"
