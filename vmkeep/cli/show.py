"""`vmkeep show`: all about one recovery point."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from vmkeep.cli.console import local_time, out, print_json
from vmkeep.cli.points import summary
from vmkeep.components.files import CATALOGUE
from vmkeep.components.tree_restore import entries
from vmkeep.components.tree_save import list_tree
from vmkeep.errors import NotFoundError
from vmkeep.operations import extract, files, repositories
from vmkeep.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmkeep.components.catalogue import Entry
    from vmkeep.fleet import FleetFile
    from vmkeep.repository import Point, Repository, SavedComponent


def show(file: FleetFile, vm: str, session: str, *, as_json: bool) -> None:
    """Print all about one recovery point.

    Raises:
        NotFoundError: there is none of this VM and session.
    """
    with repositories.open_repository(file) as repository:
        point = repository.point(vm, session)
    print_point(point, as_json=as_json)


def print_point(point: Point, *, as_json: bool) -> None:
    """Print all about a recovery point that was read."""
    if as_json:
        print_json(_all(point))
        return
    for line in _lines(point):
        out().print(line)


def show_files(  # noqa: PLR0913  (each is an option)
    file: FleetFile, vm: str, session: str, component: str, *, path: str, as_json: bool
) -> None:
    """List the files of one component at and below *path*, as they would be restored.

    Raises:
        NotFoundError: the recovery point does not have it.
        UnsupportedError: it was saved as whole disks, and they cannot be opened here.
    """
    with contextlib.ExitStack() as stack:
        repository = stack.enter_context(repositories.open_repository(file))
        point, saved = _component_of(repository, vm, session, component)
        found: Iterable[Entry]
        if CATALOGUE in saved.streams:
            names = tuple(name for name in os.fsencode(path).split(b"/") if name)
            all_of_it = entries(repository, saved.streams[CATALOGUE])
            found = (one for one in all_of_it if one.path[: len(names)] == names)
        else:
            stack.enter_context(repository.reading(point))
            allowed = files.kernel_mounts(file, vm)
            tree = stack.enter_context(extract.open_disks(repository, point, kernel_mounts=allowed))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            found = list_tree(tree, [os.fsencode(path)], scratch=folder, what=f"VM {vm}")
        found = (one for one in found if not one.passage)
        if as_json:
            print_json([_file(entry) for entry in found])
        else:
            for entry in found:
                sys.stdout.write(_file_line(entry) + "\n")


def _component_of(
    repository: Repository, vm: str, session: str, component: str
) -> tuple[Point, SavedComponent]:
    """Return a saved component; of the newest recovery point that has it, if none was named."""
    point = repository.point(vm, session)
    if session == "latest":
        older = repository.newest_first(vm)
        point = next((one for one in older if component in one.components), point)
    saved = point.components.get(component)
    if saved is None:
        why = point.missing.get(component, f"it has {', '.join(point.components)}")
        raise NotFoundError(f"recovery point {point.session} of {vm} has no {component}: {why}")
    return point, saved


def _lines(point: Point) -> Iterator[Text]:
    yield Text(f"{point.vm}  {point.session}", "bold")
    yield Text(f"taken        {local_time(point.taken)}  ({point.taken})")
    yield Text(f"sealed       {local_time(point.sealed)}")
    yield Text(f"run          {point.run} of fleet {point.fleet}")
    yield Text(f"consistency  {point.consistency}, group {point.group}")
    if point.frozen or point.skew:
        yield Text(
            f"stood still  {format_duration(point.frozen)}, captured within {format_duration(point.skew)}"
        )
    for remark in point.remarks:
        yield Text(f"remark       {remark}", "yellow")
    yield Text(f"parent       {point.parent or 'none'}")
    for component, reason in point.missing.items():
        yield Text(f"PARTIAL      lacks {component}: {reason}", "bold red")
    for saved in point.components.values():
        yield from _component_lines(saved)
    yield Text("\ndefinition", "bold")
    yield Text(point.definition)
    yield Text("\ninstructions", "bold")
    yield Text(point.instructions)


def _component_lines(saved: SavedComponent) -> Iterator[Text]:
    cost = saved.stats
    yield Text(f"\n{saved.name}", "bold")
    yield Text(
        f"  read {format_size(cost.read)}, new {format_size(cost.new)}, stored {format_size(cost.stored)} "
        f"in {format_duration(cost.seconds)}"
    )
    for name, disk in saved.disks.items():
        yield Text(f"  disk {name}: {format_size(disk.size)}, chunks of {format_size(disk.chunk_size)}")
    for name, stream in saved.streams.items():
        yield Text(f"  stream {name}: {format_size(stream.size)}")
    for name, fact in saved.facts.items():
        yield Text(f"  {name}: {fact.replace(chr(10), ', ')}")


def _all(point: Point) -> dict[str, Any]:
    return {
        **summary(point),
        "sealed": point.sealed,
        "fleet": point.fleet,
        "parent": point.parent,
        "frozen": point.frozen,
        "skew": point.skew,
        "remarks": [*point.remarks],
        "components": {name: _component(saved) for name, saved in point.components.items()},
        "definition": point.definition,
        "instructions": point.instructions,
        "fleet_file": point.fleet_file,
    }


def _component(saved: SavedComponent) -> dict[str, Any]:
    return {
        "disks": {
            name: {"size": disk.size, "chunk_size": disk.chunk_size} for name, disk in saved.disks.items()
        },
        "streams": {name: {"size": stream.size} for name, stream in saved.streams.items()},
        "facts": dict(saved.facts),
        "read": saved.stats.read,
        "new": saved.stats.new,
        "stored": saved.stats.stored,
        "seconds": saved.stats.seconds,
    }


def _path(names: tuple[bytes, ...]) -> str:
    """Return a path that can be printed: bytes that are no UTF-8, and control characters, as escapes."""
    text = "/" + b"/".join(names).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _file(entry: Entry) -> dict[str, Any]:
    return {
        "path": _path(entry.path),
        "kind": entry.kind,
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime": datetime.fromtimestamp(entry.mtime_ns / 1e9, UTC).isoformat(),
        "target": os.fsdecode(entry.target).encode("utf-8", "replace").decode() or None,
        "same_as": None if entry.same_as is None else _path(entry.same_as),
    }


_TYPES = {
    "folder": stat.S_IFDIR, "file": stat.S_IFREG, "link": stat.S_IFLNK, "character": stat.S_IFCHR,
    "block": stat.S_IFBLK, "pipe": stat.S_IFIFO, "socket": stat.S_IFSOCK,
}  # fmt: skip


def _file_line(entry: Entry) -> str:
    mode = stat.filemode(_TYPES[entry.kind] | entry.mode)
    changed = datetime.fromtimestamp(entry.mtime_ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M")
    link = f" -> {_path((entry.target,))[1:]}" if entry.kind == "link" else ""
    return f"{mode} {entry.uid:>5} {entry.gid:>5} {entry.size:>12} {changed} {_path(entry.path)}{link}"
