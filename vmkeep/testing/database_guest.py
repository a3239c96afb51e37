"""A disk for a tiny guest with a real PostgreSQL server in it, which starts when the guest has booted.

The disk's root is the server's root, too: its programs, their libraries, and a cluster where Debian has it,
`/var/lib/postgresql/VERSION/main`. Inside the guest it is below /data.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.disks import tools
from vmkeep.testing import postgresql
from vmkeep.testing.guests import Volume, build_filesystem
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE: Final = 192 * MiB
_SUPERUSER: Final = "shop"
_PROGRAMS: Final = ("postgres", "psql")
_BOOT: Final = """#!/bin/sh
mount -t tmpfs tmp /data/tmp; chmod 1777 /data/tmp
mount -t devtmpfs dev /data/dev; mkdir -p /data/dev/shm
mount -t tmpfs shm /data/dev/shm; chmod 1777 /data/dev/shm
rm -f /data/{cluster}/postmaster.pid
exec chroot /data /bin/su postgres -s /bin/sh -c 'exec {bin}/postgres -D /{cluster} -k /tmp \
    -c listen_addresses=' >/tmp/postgres.log 2>&1
"""
_CONFIGURATION: Final = """
shared_buffers = 4MB
max_connections = 10
max_wal_size = 16MB
min_wal_size = 4MB
timezone = GMT       # there are no others in the guest
log_timezone = GMT
"""


def build(path: Path, statements: Sequence[str], files: dict[str, str] | None = None) -> None:
    """Make a raw image of `SIZE` bytes.

    Args:
        statements: carried out once, as the superuser, in the database `postgres`.
        files: what else is on the disk, by path.
    """
    with postgresql.private_folder() as private:
        cluster = private / "main"
        postgresql.make_cluster(cluster, superuser=_SUPERUSER)
        with postgresql.server(cluster, superuser=_SUPERUSER) as ask:
            for statement in statements:
                ask(statement)
        tree = private / "tree"
        _fill(tree, cluster)
        for name, text in (files or {}).items():
            (tree / name).write_text(text)
        build_filesystem(path, Volume(tree, size=SIZE, label="root"))


def data_directory() -> str:
    """Return where the cluster is on the disk, without the leading slash."""
    return f"var/lib/postgresql/{_version()}/main"


def asking(statement: str) -> list[str]:
    """Return the command that carries out a statement inside the guest, and prints the rows."""
    ask = (
        f"{_bin()}/psql -XqAt -v ON_ERROR_STOP=1 -h /tmp -U {_SUPERUSER} -d postgres"
        f" -c {shlex.quote(statement)}"
    )
    return ["chroot", "/data", "/bin/su", "postgres", "-s", "/bin/sh", "-c", ask]


def rows(image: Path, statement: str) -> str:
    """Carry out a statement on the cluster of a copy of the disk, with a server of this host.

    Args:
        image: a raw copy, which is changed: its file system's journal is replayed.
    """
    done = subprocess.run(
        [tools.find("e2fsck"), "-fy", str(image)], capture_output=True, check=False, timeout=120
    )
    assert done.returncode in {0, 1}, done.stdout.decode()
    with postgresql.private_folder() as private:
        tools.run("debugfs", "-R", f"rdump /{data_directory()} {private}", str(image), timeout_s=120)
        cluster = private / "main"
        (cluster / "postmaster.pid").unlink(missing_ok=True)
        own(cluster)
        with postgresql.server(cluster, superuser=_SUPERUSER) as ask:
            return ask(statement).strip()


def own(cluster: Path) -> None:
    """Give a data directory to who runs servers on this host."""
    owner = postgresql.owner()
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, *owner, follow_symlinks=False)
    cluster.chmod(0o700)


def _fill(tree: Path, cluster: Path) -> None:
    user, group = postgresql.owner()
    for folder in ("bin", "dev", "proc", "tmp", "etc", "run", data_directory()):
        (tree / folder).mkdir(parents=True)
    shutil.copy(tools.find("busybox"), tree / "bin/busybox")
    for name in ("sh", "su"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc/passwd").write_text(f"root:x:0:0::/:/bin/sh\npostgres:x:{user}:{group}::/tmp:/bin/sh\n")
    (tree / "etc/group").write_text(f"root:x:0:\npostgres:x:{group}:\n")
    for name in _PROGRAMS:
        _program(tree, Path(postgresql.program(name)))
    for name in ("plpgsql.so", "dict_snowball.so"):
        _program(tree, Path(_bin()).parent / "lib" / name)
    shutil.copytree(f"/usr/share/postgresql/{_version()}", tree / f"usr/share/postgresql/{_version()}",
                    ignore=shutil.ignore_patterns("man", "extension", "*.sql", "*.bki"))  # fmt: skip
    shutil.rmtree(tree / data_directory())
    shutil.copytree(cluster, tree / data_directory(), symlinks=True)
    with (tree / data_directory() / "postgresql.conf").open("a") as file:
        file.write(_CONFIGURATION)
    own(tree / data_directory())
    boot = tree / "boot"
    boot.write_text(_BOOT.format(cluster=data_directory(), bin=_bin()))
    boot.chmod(0o755)


def _program(tree: Path, path: Path) -> None:
    """Copy a program or library with all it needs, to where it is here."""
    told = subprocess.run(["ldd", str(path)], capture_output=True, check=True, text=True).stdout
    for word in (str(path), *told.split()):
        target = tree / word.lstrip("/")
        if word.startswith("/") and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, target)


def _bin() -> str:
    return str(Path(postgresql.program("postgres")).parent)


def _version() -> str:
    return Path(postgresql.program("postgres")).parts[4]
