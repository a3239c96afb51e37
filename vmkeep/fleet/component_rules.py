"""What must hold inside one VM: its disks, its components, its health checks."""

from __future__ import annotations

import urllib.parse
from itertools import pairwise
from typing import TYPE_CHECKING

from vmkeep.fleet.document import Finding
from vmkeep.fleet.model import Kind
from vmkeep.fleet.suggest import suggestion
from vmkeep.fleet.topology import disks_of_os, whole_disks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.fleet.document import Path
    from vmkeep.fleet.model import VM


def findings(path: Path, vm: VM, broken: frozenset[str]) -> Iterator[Finding]:
    """Yield what is wrong inside the VM at *path*; keys in *broken* were wrong in themselves."""
    if not broken & {"disks", "components"}:
        yield from _twice(path, vm)
        yield from _disks(path, vm)
        yield from _claims(path, vm)
    if "components" not in broken:
        yield from _names(path, vm)
        yield from _engines(path, vm)
    if not broken & {"guest", "health"}:
        yield from _guest(path, vm)


def _twice(path: Path, vm: VM) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, disk in enumerate(vm.disks):
        if disk.name in seen:
            yield Finding((*path, "disks", index, "name"), f"there are two disks {disk.name!r}")
        seen.add(disk.name)
        if disk.size == 0:
            yield Finding((*path, "disks", index, "size"), "a disk of no bytes holds nothing")


def _disks(path: Path, vm: VM) -> Iterator[Finding]:
    """Yield references to disks that the VM does not have."""
    known = [disk.name for disk in vm.disks]
    used: list[tuple[Path, str]] = []
    if vm.components.os is not None and vm.components.os.disks is not None:
        used += [(("os", "disks", index), disk) for index, disk in enumerate(vm.components.os.disks)]
    for name, filesystem in vm.components.filesystems.items():
        if filesystem.disk is not None:
            used.append((("filesystems", name, "disk"), filesystem.disk))
    for where, disk in used:
        if disk not in known:
            hint = suggestion(disk, known) if known else "; the VM declares no disks"
            yield Finding((*path, "components", *where), f"there is no disk {disk!r}{hint}")
    if known:
        return
    files = [("filesystems", name) for name, one in vm.components.filesystems.items() if one.disk is None]
    files += [(kind, name) for kind in ("databases", "applications") for name in getattr(vm.components, kind)]
    for where in files:
        yield Finding(
            (*path, "components", *where), "the VM declares no disks, so there is nowhere to read this from"
        )


def _claims(path: Path, vm: VM) -> Iterator[Finding]:
    """Yield disks that two components would save whole, and an `os` that has none left."""
    owners = [
        ("os", disk) for disk in disks_of_os(vm) if vm.components.os and vm.components.os.disks is not None
    ]
    owners += [(f"filesystems.{name}", disk) for name, disk in whole_disks(vm.components).items()]
    for (first, one), (second, other) in pairwise(sorted(owners, key=lambda owner: owner[1])):
        if one == other:
            where = second.split(".", 1)
            last: Path = ("disk",) if len(where) == 2 else ()
            yield Finding((*path, "components", *where, *last), f"disk {one!r} belongs to {first} already")
    if vm.components.os is not None and vm.disks and not disks_of_os(vm):
        yield Finding((*path, "components", "os"), "has no disk: every one belongs to a file system")


def _names(path: Path, vm: VM) -> Iterator[Finding]:
    for kind in (Kind.FILESYSTEMS, Kind.DATABASES, Kind.APPLICATIONS):
        for name in getattr(vm.components, kind.value):
            if name in set(Kind):
                yield Finding(
                    (*path, "components", kind.value, name),
                    f"{name!r} is a kind of component: give this one another name",
                )
    if vm.components.os is None and not any(
        getattr(vm.components, kind.value) for kind in Kind if kind is not Kind.OS
    ):
        yield Finding(
            (*path, "components"), "names no component, so nothing is saved; `os: {}` saves all disks"
        )


def _engines(path: Path, vm: VM) -> Iterator[Finding]:
    for name, database in vm.components.databases.items():
        if database.engine == "sqlite" and database.path is None:
            yield Finding(
                (*path, "components", "databases", name), "an sqlite database is a file: say its path"
            )


def _guest(path: Path, vm: VM) -> Iterator[Finding]:
    agent = vm.guest is not None and vm.guest.agent
    inside = agent or (vm.guest is not None and vm.guest.ssh is not None)
    for index, check in enumerate(vm.health):
        where = (*path, "health", index, check.kind)
        if check.kind == "agent" and not agent:
            yield Finding(where, "needs the guest agent: write `guest: {agent: true}`")
        if check.kind in {"exec", "sql"} and not inside:
            yield Finding(
                where, "runs inside the guest: say how to reach it, for example `guest: {agent: true}`"
            )
        if check.kind in {"ping", "tcp"} and not inside:
            yield Finding(
                where, "needs the VM's address: write `guest: {agent: true}` or `guest: {ssh: {host: ...}}`"
            )
        if check.http is not None and not _is_web_address(check.http):
            yield Finding(where, f"{check.http!r} is not a web address: write http://HOST/PATH")


def _is_web_address(text: str) -> bool:
    parts = urllib.parse.urlsplit(text)
    return parts.scheme in {"http", "https"} and bool(parts.hostname)
