"""What is on the disks: files of this Debian system, an application, a web site, databases."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from demo import databases
from demo.guests import Guest, copy_tree, folder, mirror
from demo.terminal import DemoError
from vmkeep.testing import postgresql
from vmkeep.testing.guests import Volume, build_disk
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Iterable

ORDERS: Final = 10_000
ITEMS: Final = 5_000
PAGES: Final = 300
NEW_ORDERS: Final = 500
STOCK: Final = "/var/lib/erp/stock.sqlite"
CLUSTERS: Final = "/var/lib/postgresql"

_BASE: Final = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "dpkg", "e2fsprogs",
    "findutils", "grep", "gzip", "hostname", "libc-bin", "libc6", "login", "mount", "passwd", "perl-base",
    "sed", "sysvinit-utils", "tar", "tzdata", "util-linux",
)  # fmt: skip
_SKIPPED: Final = re.compile("/(bitcode|locale)/")
"""Much of what PostgreSQL's compiler and translations take; the demo shall be quick."""
_ROOT: Final = 510 * MiB
_DATA: Final = 190 * MiB
_LINKS: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_UNIT: Final = """\
[Unit]
Description=The shop's application
After=network.target

[Service]
ExecStart=/opt/erp/bin/erp --config /etc/erp/erp.conf

[Install]
WantedBy=multi-user.target
"""


def build(fleet_file: Path, work: Path) -> int:
    """Install the machines on the disks that `vmkeep configure` made; return the bytes of their files.

    Args:
        work: a folder for what is put together on the way; it is removed.
    """
    machines = fleet_file.parent / "machines"
    work.mkdir()
    base = work / "base"
    _copy_packages(_BASE, base)
    total = 0
    for name, fill in (("db1", _fill_db1), ("app1", _fill_app1), ("web1", _fill_web1)):
        tree = work / name
        subprocess.run(["cp", "--archive", "--link", str(base), str(tree)], check=True, timeout=300)
        _write(tree / "etc/hostname", f"{name}\n")
        _write(tree / "etc/fstab", "LABEL=root / ext4 defaults 0 1\n")
        fill(tree)
        total += _size(tree)
    build_disk(machines / "web1/root.qcow2", [Volume(work / "web1", _ROOT, "root")], format="qcow2")
    build_disk(machines / "app1/root.vmdk", [Volume(work / "app1", _ROOT, "root")], format="vmdk")
    build_disk(machines / "db1/root.qcow2", [Volume(work / "db1", _ROOT, "root")], format="qcow2")
    with postgresql.private_folder() as private:
        clusters = private / "postgresql"
        total += _make_clusters(clusters, private)
        build_disk(machines / "db1/data.raw", [Volume(clusters, _DATA, "data")])
    shutil.rmtree(work)
    return total


def work_a_day(fleet_file: Path) -> None:
    """Change the machines as a day of work does: orders, stock, a page, a setting."""
    with postgresql.private_folder() as private, Guest(fleet_file, "db1").writing() as tree:
        cluster = find_cluster(tree.names(os.fsencode(CLUSTERS)))
        with folder(tree, cluster) as inside:
            copy = private / "main"
            copy_tree(inside, copy)
            with databases.server(copy) as shop:
                shop.add_orders(first=ORDERS + 1, count=NEW_ORDERS)
                shop.ask("UPDATE orders SET cents = cents + 1 WHERE id <= 10")
            mirror(copy, inside)
    with postgresql.private_folder() as private, Guest(fleet_file, "app1").writing() as tree:
        with folder(tree, str(Path(STOCK).parent)) as inside:
            copy = private / "stock.sqlite"
            shutil.copyfile(inside / copy.name, copy)
            databases.add_to_stock(copy, first=ITEMS + 1, items=100)
            shutil.copyfile(copy, inside / copy.name)
        with folder(tree, "/etc/erp") as inside:
            _write(inside / "erp.conf", "database = db1\nworkers = 8\n")
    with Guest(fleet_file, "web1").writing() as tree, folder(tree, "/srv/www") as inside:
        _write(inside / "news.html", "<h1>Now with more workers</h1>\n")
        (inside / "pages/page-7.html").unlink()
        (inside / "photo.jpg").write_bytes(random.Random(2).randbytes(MiB))  # noqa: S311  (incompressible)


def find_cluster(versions: Iterable[bytes]) -> str:
    """Return the path of the data directory, of the names in `CLUSTERS`."""
    version = next(name for name in versions if name != b"lost+found")
    return f"{CLUSTERS}/{os.fsdecode(version)}/main"


def _fill_db1(tree: Path) -> None:
    version = Path(postgresql.program("postgres")).parts[4]
    _copy_packages([f"postgresql-{version}"], tree)
    (tree / CLUSTERS[1:]).mkdir(parents=True, exist_ok=True)
    with (tree / "etc/fstab").open("a") as file:
        file.write(f"LABEL=data {CLUSTERS} ext4 defaults 0 2\n")


def _make_clusters(clusters: Path, private: Path) -> int:
    cluster = private / "main"
    databases.make_cluster(cluster)
    with databases.server(cluster) as shop:
        shop.add_orders(first=1, count=ORDERS)
    version = (cluster / "PG_VERSION").read_text().strip()
    clusters.joinpath(version).mkdir(parents=True)
    copy_tree(cluster, clusters / version / "main")
    return _size(clusters)


def _fill_app1(tree: Path) -> None:
    _write(tree / "opt/erp/bin/erp", '#!/bin/sh\nexec /opt/erp/lib/serve "$@"\n', mode=0o755)
    for number in range(100):
        _write(tree / f"opt/erp/lib/module-{number}.py", f"def answer():\n    return {number}\n" * 50)
    _write(tree / "etc/erp/erp.conf", "database = db1\nworkers = 4\n")
    _write(tree / "etc/erp/secret.conf", "token = of-the-demo\n", mode=0o600)
    _write(tree / "etc/systemd/system/erp.service", _UNIT)
    wants = tree / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "erp.service").symlink_to("/etc/systemd/system/erp.service")
    stock = tree / STOCK[1:]
    stock.parent.mkdir(parents=True)
    databases.make_stock(stock, items=ITEMS)


def _fill_web1(tree: Path) -> None:
    for number in range(PAGES):
        _write(
            tree / f"srv/www/pages/page-{number}.html", f"<h1>Page {number}</h1>\n<p>of the shop</p>\n" * 40
        )
    _write(tree / "srv/www/index.html", '<a href="pages/page-0.html">The shop</a>\n')
    (tree / "srv/www/start.html").symlink_to("index.html")
    media = random.Random(1)  # noqa: S311  (incompressible, the same each time)
    for number in range(8):
        (tree / f"srv/www/film-{number}.mp4").write_bytes(media.randbytes(2 * MiB))


def _copy_packages(packages: Iterable[str], target: Path) -> None:
    """Copy the files of installed packages, as they are on this machine, and the list of packages."""
    names = set()
    for package in packages:
        done = subprocess.run(
            ["dpkg", "-L", package], capture_output=True, text=True, timeout=60, check=False
        )
        names |= {_real(line) for line in done.stdout.splitlines() if line.startswith("/")}
    if not names:
        raise DemoError(
            "dpkg knows none of the packages whose files the demo copies: it needs Debian or Ubuntu"
        )
    names.add("var/lib/dpkg/status")
    wanted = sorted(name for name in names if os.path.lexists(f"/{name}") and not _SKIPPED.search(name))
    target.mkdir(exist_ok=True)
    # What only root may read is left out for others; tar says so, and goes on.
    archive = [
        "tar",
        "--create",
        "--directory=/",
        "--no-recursion",
        "--ignore-failed-read",
        "--verbatim-files-from",
    ]
    with subprocess.Popen(
        [*archive, "--files-from=-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as reader, subprocess.Popen(
        ["tar", "--extract", "--skip-old-files", "--preserve-permissions", f"--directory={target}"],
        stdin=reader.stdout, stderr=subprocess.DEVNULL,
    ) as writer:  # fmt: skip
        assert reader.stdin is not None  # noqa: S101  (a pipe)
        reader.stdin.write("\n".join(wanted).encode())
        reader.stdin.close()
    if writer.returncode or not (target / "var/lib/dpkg/status").exists():
        raise DemoError(
            f"files of this system could not be copied to {target} (tar ended with {writer.returncode})"
        )
    for link in _LINKS:
        if Path("/", link).is_symlink() and not os.path.lexists(target / link):
            (target / link).symlink_to(Path("/", link).readlink())


def _real(path: str) -> str:
    """Return where a package's file really is, without the leading slash: /bin is a link to usr/bin today."""
    return f"{Path(path).parent.resolve()}/{Path(path).name}".strip("/") or "."


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _size(tree: Path) -> int:
    return sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
