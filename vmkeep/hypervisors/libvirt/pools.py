"""Storage pools: where disks are made, and where an ISO lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import libvirt

from vmkeep.errors import InputError, NotFoundError, UnsupportedError
from vmkeep.hypervisors.libvirt.connection import translated
from vmkeep.hypervisors.libvirt.machine import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.hypervisors.libvirt.connection import Connection

DEFAULT: Final = "default"
FORMATS: Final = ("qcow2", "raw")
"""The formats of disks that a VM can run on here; qcow2 alone remembers what changed."""
FOLDERS: Final = {"dir", "fs", "netfs"}
"""Types of pool whose volumes are files of a folder."""


def folder(connection: Connection, pool: str | None) -> Path:
    """Return the folder of a pool (by default of `default`); a pool that is stopped is started.

    Raises:
        InputError: there is no such pool; says which there are.
        UnsupportedError: its volumes are no files.
    """
    name = pool or DEFAULT
    with translated(f"storage pool {name}"):
        try:
            found = _pool(connection, name)
        except NotFoundError:
            known = ", ".join(sorted(one.name() for one in connection.get().listAllStoragePools())) or "none"
            raise InputError(
                f"there is no storage pool {name} at {connection.uri} (there is: {known}): make it with "
                f"'virsh pool-define-as {name} dir --target FOLDER' and 'virsh pool-start {name}', "
                "or name another as the disk's storage"
            ) from None
        if not found.isActive():
            found.create()
        root = parse(found.XMLDesc(), what=f"storage pool {name}")
    kind = root.get("type", "")
    path = root.findtext("target/path")
    if kind not in FOLDERS or not path:
        raise UnsupportedError(
            f"storage pool {name} is of type {kind}: vmkeep makes disks in pools that are folders "
            f"({', '.join(sorted(FOLDERS))})"
        )
    return Path(path)


def make(connection: Connection, pool: str | None, name: str, format: str, size: int) -> Path:  # noqa: A002
    """Make a volume that reads as zeros, and return its file.

    Raises:
        InputError: there is no such pool, or it has a volume of that name.
    """
    where = folder(connection, pool)
    with translated(f"storage pool {pool or DEFAULT}: volume {name}"):
        _pool(connection, pool or DEFAULT).createXML(
            "<volume>"
            f"<name>{name}</name><capacity unit='bytes'>{size}</capacity><allocation>0</allocation>"
            f"<target><format type='{format}'/>{'<compat>1.1</compat>' if format == 'qcow2' else ''}</target>"
            "</volume>"
        )
    return where / name


def refresh(connection: Connection, path: Path) -> None:
    """Let the pool that has *path* see what is in its folder now; without one there is nothing to do."""
    for pool in connection.get().listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        root = parse(pool.XMLDesc(), what="storage pool")
        if root.findtext("target/path") == str(path.parent):
            pool.refresh()


def find_iso(connection: Connection, name: str) -> str:
    """Return the file of an ISO: a path, or the name of a volume in any pool.

    Raises:
        InputError: it is not there.
    """
    if name.startswith("/"):
        return name
    for pool, path in folders(connection):
        if (Path(path) / name).is_file() or _has_volume(connection, pool, name):
            return str(Path(path) / name)
    known = ", ".join(f"{pool} ({path})" for pool, path in folders(connection)) or "none"
    raise InputError(
        f"iso {name!r} is in no storage pool at {connection.uri} ({known}): put it there, "
        "run 'virsh pool-refresh POOL', or say its absolute path"
    )


def folders(connection: Connection) -> Iterator[tuple[str, str]]:
    """Yield the name and folder of each pool that is one, and runs."""
    with translated(f"storage pools at {connection.uri}"):
        pools = connection.get().listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
        for pool in pools:
            root = parse(pool.XMLDesc(), what=f"storage pool {pool.name()}")
            path = root.findtext("target/path")
            if root.get("type") in FOLDERS and path:
                yield pool.name(), path


def _pool(connection: Connection, name: str) -> libvirt.virStoragePool:
    with translated(f"storage pool {name}"):
        return connection.get().storagePoolLookupByName(name)


def _has_volume(connection: Connection, pool: str, name: str) -> bool:
    try:
        _pool(connection, pool).storageVolLookupByName(name)
    except libvirt.libvirtError:
        return False
    return True
