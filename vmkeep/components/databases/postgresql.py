"""PostgreSQL: the whole cluster, from a VM that is powered off, or from the snapshot of one that runs.

A cluster lies in one data directory, and in what its links point to (tablespaces, the log on a disk of
its own); Debian keeps its configuration elsewhere. All of it is saved together: the files of single
databases are worth nothing without the rest.

The snapshot of a VM that runs shows all of its disks at one moment, with the write-ahead log, as a power
failure would: a server that is started on it recovers, and nothing that was committed is lost.
See: PostgreSQL documentation, "File System Level Backup".
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.components import files
from vmkeep.errors import DirtyError, SourceError
from vmkeep.units import KiB

if TYPE_CHECKING:
    from vmkeep.components.base import RestoreContext, SaveContext
    from vmkeep.disks.file_tree import FileTree
    from vmkeep.fleet.model import DatabaseComponent
    from vmkeep.repository.manifest import SavedComponent

_DEBIAN: Final = b"/var/lib/postgresql"
_DEBIAN_CONFIG: Final = b"/etc/postgresql"
# See: PostgreSQL, src/include/catalog/pg_control.h, ControlFileData: system identifier (8 bytes),
# pg_control_version, catalog_version_no, state (4 bytes each), in the byte order of the server.
_CONTROL: Final = struct.Struct("<QIII")
_CLEAN: Final = {1, 2}
_STATES: Final = (
    "starting up", "shut down", "shut down in recovery", "shutting down", "in crash recovery",
    "in archive recovery", "in production",
)  # fmt: skip
# pg_control_version of PostgreSQL 9.3 (937) to 18 (1800); others may have another layout.
_VERSIONS: Final = range(937, 1900)
_ADVICE: Final = (
    "start the VM, stop PostgreSQL cleanly (systemctl stop postgresql), power the VM off, and back it up "
    "again; or back its disk up whole"
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that was stopped cleanly."""

    directory: tuple[bytes, ...]
    version: str
    """The major version, such as `15`."""
    system: str
    """The system identifier, which is the same for all copies of a cluster."""
    clean: bool = True
    """Whether it was stopped; otherwise it recovers when it is started."""


class Postgresql:
    """A component of the kind `databases` with the engine `postgresql`."""

    def __init__(self, config: DatabaseComponent) -> None:
        self._config = config

    def save(self, context: SaveContext) -> SavedComponent:
        """Save the data directory, its tablespaces, and Debian's configuration of it.

        Raises:
            DirtyError: the server was not stopped cleanly.
            SourceError: there is no cluster, or several.
        """
        tree = context.files.open()
        what = f"VM {context.name}: {context.component}"
        path = os.fsencode(self._config.path) if self._config.path else find_cluster(tree, what)
        cluster = read_cluster(tree, path, what, live=context.machine.running)
        roots = [path, *outside(tree, cluster.directory)]
        config = _DEBIAN_CONFIG + b"/%s/%s" % (os.fsencode(cluster.version), cluster.directory[-1])
        if tree.exists(config):
            roots.append(config)
        facts = {
            "engine": "postgresql",
            "version": cluster.version,
            "system": cluster.system,
        }
        if self._config.database is not None:
            facts["note"] = f"database {self._config.database} was asked for; the whole cluster is saved"
        if not cluster.clean:
            facts["recovery"] = "it ran: the server recovers by its write-ahead log when it is started"
        # A server that finds another's process id may refuse to start.
        return files.save_paths(context, roots, facts=facts, exclude=["/postmaster.pid"])

    def restore(self, context: RestoreContext, saved: SavedComponent) -> None:
        """Write the cluster exactly as it was: files that it did not have are removed."""
        with files.target(context) as tree:
            files.restore_paths(context, saved, tree, exact=True)


def find_cluster(tree: FileTree, what: str) -> bytes:
    """Return the data directory of the only cluster that Debian's packages made.

    Raises:
        SourceError: there is none, or several.
    """
    found = [
        _DEBIAN + b"/" + version + b"/main"
        for version in tree.names(_DEBIAN)
        if tree.exists(_DEBIAN + b"/" + version + b"/main/PG_VERSION")
    ]
    if len(found) != 1:
        which = ", ".join(map(os.fsdecode, found)) or "none"
        raise SourceError(f"{what}: clusters in {os.fsdecode(_DEBIAN)}/*/main: {which}; say its path")
    return found[0]


def read_cluster(tree: FileTree, path: bytes, what: str, *, live: bool = False) -> Cluster:
    """Look at the cluster in the directory *path*.

    Args:
        live: It is the snapshot of a VM that runs, so its server may run, too.

    Raises:
        DirtyError: it was not stopped cleanly.
        SourceError: there is no cluster, or one of a version we do not know.
    """
    version = tree.read(path + b"/PG_VERSION", most=KiB)
    control = tree.read(path + b"/global/pg_control", most=8 * KiB) or b""
    where = os.fsdecode(path)
    if version is None or len(control) < _CONTROL.size:
        raise SourceError(
            f"{what}: {where} is no data directory of PostgreSQL (no PG_VERSION or global/pg_control)"
        )
    system, layout, _, state = _CONTROL.unpack_from(control)
    if layout not in _VERSIONS or state >= len(_STATES):
        raise SourceError(
            f"{what}: {where}/global/pg_control has version {layout}, which vmkeep does not know"
        )
    pid = tree.exists(path + b"/postmaster.pid")
    directory = tree.resolve(path).names
    if live:
        clean = state in _CLEAN and not pid
        return Cluster(directory, version.decode("ascii", "replace").strip(), str(system), clean=clean)
    if state not in _CLEAN:
        raise DirtyError(f"{what}: {where}: the server was not stopped cleanly ({_STATES[state]}): {_ADVICE}")
    if pid:
        raise DirtyError(
            f"{what}: {where} has a postmaster.pid: the server was killed while it ran: {_ADVICE}"
        )
    return Cluster(directory, version.decode("ascii", "replace").strip(), str(system))


def outside(tree: FileTree, directory: tuple[bytes, ...]) -> list[bytes]:
    """Return what the cluster's links point to: tablespaces, and a write-ahead log on a disk of its own."""
    base = b"/" + b"/".join(directory)
    links = [base + b"/pg_wal", *(base + b"/pg_tblspc/" + name for name in tree.names(base + b"/pg_tblspc"))]
    return [link for link in links if tree.resolve(link).links]
