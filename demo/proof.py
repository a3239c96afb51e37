"""What a fleet is at one moment, read by other programs than vmkeep where there are any: to compare."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from demo import databases
from demo.guests import Guest, copy_tree, folder
from demo.machines import CLUSTERS, STOCK, find_cluster
from demo.terminal import DemoError
from vmkeep.disks import tools
from vmkeep.testing import postgresql
from vmkeep.testing.guests import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmkeep.disks.device import Image
    from vmkeep.disks.file_tree import FileTree

VMS: Final = ("db1", "app1", "web1")


@dataclass(frozen=True, slots=True)
class Moment:
    """All of the fleet's data."""

    disks: Mapping[str, str]
    """SHA-256 of all bytes of each virtual disk, holes included, by `vm/disk`."""
    files: Mapping[str, object]
    """All that is known of each file and folder, by `vm:path`."""
    orders: databases.Rows
    stock: databases.Rows


def look(fleet_file: Path) -> Moment:
    """Look at the whole fleet."""
    files: dict[str, object] = {}
    for name in VMS:
        with Guest(fleet_file, name).reading() as tree:
            for place in ("/", CLUSTERS) if name == "db1" else ("/",):
                files |= files_in(tree, name, place)
    return Moment(
        disks={key: digest for name in VMS for key, digest in disks_of(Guest(fleet_file, name)).items()},
        files=files,
        orders=orders_of(Guest(fleet_file, "db1")),
        stock=stock_of(Guest(fleet_file, "app1")),
    )


def compare(expected: Moment, found: Moment) -> None:
    """Check that two moments are the same.

    Raises:
        DemoError: something differs; says the first of what.
    """
    _same("disk", expected.disks, found.disks)
    _same("file", expected.files, found.files)
    if found.orders != expected.orders:
        raise DemoError(f"PostgreSQL has {found.orders}, and had {expected.orders}")
    if found.stock != expected.stock:
        raise DemoError(f"SQLite has {found.stock}, and had {expected.stock}")


def disks_of(guest: Guest) -> dict[str, str]:
    """Return the SHA-256 of each virtual disk's content, as qemu-img reads it."""
    return {f"{guest.name}/{image.disk}": _digest(image) for image in guest.images()}


def files_in(tree: FileTree, name: str, place: str) -> dict[str, object]:
    """Describe all entries of the file system at *place*."""
    with folder(tree, place) as root:
        entries: dict[bytes, Any] = describe(root)
    return {f"{name}:{place.rstrip('/')}{os.fsdecode(path)}": entry for path, entry in entries.items()}


def orders_of(guest: Guest) -> databases.Rows:
    """Start a real PostgreSQL on a copy of the guest's data directory, and read all rows."""
    with postgresql.private_folder() as private:
        copy = private / "main"
        with guest.reading() as tree:
            path = find_cluster(tree.names(os.fsencode(CLUSTERS)))
            with folder(tree, path) as cluster:
                copy_tree(cluster, copy)
        with databases.server(copy) as shop:
            return shop.orders()


def stock_of(guest: Guest) -> databases.Rows:
    """Read all rows of the guest's SQLite database."""
    with tempfile.TemporaryDirectory(prefix="vmkeep-demo-") as private:
        copy = Path(private) / "stock.sqlite"
        with guest.reading() as tree, tree.open_file(os.fsencode(STOCK)) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        return databases.read_stock(copy)


def _digest(image: Image) -> str:
    with tempfile.TemporaryDirectory(prefix=".digest-", dir=image.path.parent.parent) as private:
        raw = Path(private) / "disk.raw"
        tools.run(
            "qemu-img", "convert", "-f", image.format, "-O", "raw", str(image.path), str(raw), timeout_s=600
        )
        with raw.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _same(what: str, expected: Mapping[str, object], found: Mapping[str, object]) -> None:
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            now, before = found.get(key, "missing"), expected.get(key, "missing")
            raise DemoError(f"{what} {key} is not what it was: {now}, and was {before}")
