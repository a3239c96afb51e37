"""`vmkeep doctor`: does this machine have what vmkeep needs, and does the repository open."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer
from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

import vmkeep
from vmkeep.cli.console import out, print_json, print_table
from vmkeep.cli.fleet_file import load
from vmkeep.cli.init import has_repository
from vmkeep.cli.options import FLEET_FILE
from vmkeep.disks import tools
from vmkeep.errors import AccessError, TemporaryError, UnsupportedError, VmkeepError
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations import instant, orphans, repositories, serving
from vmkeep.operations.reap import left_by_drills
from vmkeep.operations.state import state_folder
from vmkeep.units import GiB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.fleet import FleetFile

_TOOLS: Final = {
    "qemu-img": "reads and writes images that are not raw",
    "qemu-storage-daemon": "serves images as disks",
    "fuse2fs": "opens guests' file systems without the kernel",
    "fusermount3": "lets users mount",
    "e2fsck": "checks guests' file systems",
}
_PINNED: Final = ("prefect", "fastapi", "sqlalchemy")
"""With other versions of these Prefect's server does not start, or silently schedules nothing."""
_OURS: Final = ("flows", "tasks", "deployments")
_LEAST_FREE: Final = 2 * GiB
_MOST_SKEW: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Check:
    """Something that was looked at."""

    what: str
    good: bool
    found: str
    """What there is; for a failure also what to do."""


def doctor(fleet: Path, *, as_json: bool) -> None:
    """Print a table of checks; ends with exit code 1 when one failed."""
    checks = [*_tools(), _fuse(), *_packages(), *_versions(), _prefect(), _state(), *_fleet(fleet)]
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        print_table(_table(checks))
        bad = sum(not check.good for check in checks)
        out().print(
            Text(f"{bad} of {len(checks)} checks failed", "bold red")
            if bad
            else Text(f"all {len(checks)} checks passed", "bold green")
        )
    if not all(check.good for check in checks):
        raise typer.Exit(1)


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        mark = Text("ok", "green") if check.good else Text("FAILED", "bold red")
        table.add_row(mark, check.what, Text(check.found, "" if check.good else "red"))
    return table


def _tools() -> Iterator[Check]:
    for tool, purpose in _TOOLS.items():
        try:
            yield Check(tool, good=True, found=tools.find(tool))
        except UnsupportedError as error:
            yield Check(tool, good=False, found=f"{error}; it {purpose}")


def _fuse() -> Check:
    device = Path("/dev/fuse")
    if os.access(device, os.R_OK | os.W_OK):
        return Check("fuse", good=True, found=str(device))
    return Check(
        "fuse",
        good=False,
        found=f"{device} cannot be used: run 'modprobe fuse', or start the container with --device {device}",
    )


def _packages() -> Iterator[Check]:
    """Check that packages with generic names are ours: any other project may ship a `tasks`."""
    home = Path(vmkeep.__file__).resolve().parent.parent
    owners = metadata.packages_distributions()
    for name in _OURS:
        spec = importlib.util.find_spec(name)
        places = [Path(one).resolve() for one in (spec and spec.submodule_search_locations) or ()]
        others = sorted(set(owners.get(name, ())) - {"vmkeep"})
        good = places == [home / name] and not others
        found = ", ".join([*map(str, places), *others]) or "is not installed"
        yield Check(
            f"package {name}",
            good=good,
            found=found if good else f"{found}: not vmkeep's alone; give vmkeep its own Python environment",
        )


def _versions() -> Iterator[Check]:
    wanted = {
        requirement.name.lower(): requirement.specifier
        for requirement in map(Requirement, metadata.requires("vmkeep") or ())
    }
    for name in _PINNED:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, good=False, found=f"is not installed: pip install '{name}{wanted[name]}'")
            continue
        good = wanted[name].contains(version)
        advice = "" if good else f": pip install '{name}{wanted[name]}'"
        yield Check(name, good=good, found=f"{version}{advice}")


def _prefect() -> Check:
    from flows import settings  # noqa: PLC0415  (it reads the environment)

    try:
        url = settings.require_server()
    except TemporaryError as error:
        return Check("Prefect server", good=False, found=str(error))
    return Check("Prefect server", good=True, found=url or "none runs, so each command starts its own")


def _state() -> Check:
    folder = state_folder("doctor").parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / f".doctor-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        found = f"{folder}: {error.strerror}: set VMKEEP_STATE to a folder that can be written"
        return Check("state folder", good=False, found=found)
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {format_size(free)} free"
    if free < _LEAST_FREE:
        found += f": a backup may need {format_size(_LEAST_FREE)}; set VMKEEP_STATE to a larger disk"
    return Check("state folder", good=free >= _LEAST_FREE, found=found)


def _fleet(path: Path) -> Iterator[Check]:
    if path == FLEET_FILE and not path.exists():
        yield Check("fleet file", good=True, found=f"no {path} here: say --fleet FILE, or 'vmkeep init'")
        return
    try:
        file = load(path)
        yield Check("fleet file", good=True, found=f"{path}: fleet {file.fleet.fleet}")
        yield from _hypervisors(file)
        yield from _served(file)
        yield from _drilled(file)
        yield from _orphans(file)
        yield from _place(file, "repository")
        for name in file.fleet.repository.copies:
            yield from _place(file.at(name), f"copy {name}")
    except VmkeepError as error:
        yield Check("fleet and repository", good=False, found=str(error))


def _hypervisors(file: FleetFile) -> Iterator[Check]:
    base = file.path.absolute().parent
    for name, config in file.fleet.hypervisors.items():
        try:
            driver = open_hypervisor(name, config, base)
            there, room = driver.inventory(), driver.capacity()
        except VmkeepError as error:
            yield Check(f"hypervisor {name}", good=False, found=str(error))
            continue
        declared = [vm for vm, one in file.fleet.vms.items() if one.hypervisor == name]
        missing = sorted(set(declared) - {one.definition.name for one in there})
        others = len(there) + len(missing) - len(declared)
        told = [f"{len(declared) - len(missing)} of {len(declared)} declared VMs are there"]
        if missing:
            told.append(f"'vmkeep configure' makes {', '.join(missing)}")
        if others:
            told.append(f"{others} more ('vmkeep import' takes them into the fleet)")
        if config.driver == "vsphere" and not config.verify_tls:
            told.append("its certificate is NOT checked (verify_tls: false)")
        told.append(f"{room.cpus} CPUs")
        spaces = [
            ("memory", room.free, room.memory),
            *((one.name, one.free, one.size) for one in room.storages),
        ]
        told += [f"{what} {format_size(free)} of {format_size(size)} free" for what, free, size in spaces]
        yield Check(f"hypervisor {name}", good=True, found="; ".join(told))


def _place(file: FleetFile, what: str) -> Iterator[Check]:
    yield _repository(file, what)
    if file.fleet.repository.object_lock is not None:
        yield _object_lock(file, f"object lock of {what}")


def _object_lock(file: FleetFile, what: str) -> Check:
    """Try a lock, with an administrator's credentials; others are told that it was not tried."""
    from vmkeep.stores.s3 import S3Store  # noqa: PLC0415  (boto3 takes 0.3 s to import)

    try:
        store = repositories.store_of(file)
        if not isinstance(store, S3Store):
            return Check(what, good=False, found=f"{store.url} is no bucket")
        found, skew = store.lock_problems()
    except AccessError as error:
        # Whoever works day by day may not, and should not.
        return Check(what, good=True, found=f"not tried, for these credentials may not: {error}")
    except VmkeepError as error:
        return Check(what, good=False, found=str(error))
    if abs(skew) > _MOST_SKEW:
        away = f"{skew.total_seconds():.0f} s away from the service's"
        found = (*found, f"this machine's clock is {away}: set it, for locks end by the service's")
    return Check(what, good=not found, found="; ".join(found) or "a locked object was not deleted")


def _drilled(file: FleetFile) -> Iterator[Check]:
    """Look for what killed drills left."""
    for name in left_by_drills(file.fleet.fleet):
        found = "was killed, and what it made is still there: any run removes it, such as 'vmkeep verify'"
        yield Check(f"drill {name}", good=False, found=found)


def _orphans(file: FleetFile) -> Iterator[Check]:
    """Look for what runs left whose notes are lost."""
    for one in orphans.found(file):
        advice = (
            "is still there though that is gone: the next backup, restore or drill removes it"
            if one.gone
            else "is there, and whether that is still at work is not seen from here: look there"
        )
        yield Check(one.vm or one.drill, good=False, found=f"{orphans.sentence(one)} {advice}")


def _served(file: FleetFile) -> Iterator[Check]:
    """Check that VMs whose data streams in have their server."""
    strange: list[VmkeepError] = []
    for one in serving.all_of(file, unreadable=strange.append):
        state = instant.state_of(one)
        good = state.server and not state.problem
        advice = "" if good else f": 'vmkeep stream {one.target}' goes on"
        yield Check(f"VM {one.target}", good=good, found=f"restored instantly; {state.sentence}{advice}")
    for error in strange:
        yield Check("server", good=False, found=str(error))


def _repository(file: FleetFile, what: str) -> Check:
    try:
        store = repositories.store_of(file)
        if not has_repository(store):
            return Check(what, good=True, found=f"none in {store.url} yet: 'vmkeep init' makes one")
        with repositories.open_repository(file) as repository:
            count = len(repository.list_points())
    except VmkeepError as error:
        return Check(what, good=False, found=str(error))
    return Check(what, good=True, found=f"{store.url}: {count} recovery points")
