"""`vmkeep restore`: from what was typed to a request, and files without their VM."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.cli.console import err, out, print_json, warn
from vmkeep.cli.fleet_file import load
from vmkeep.cli.new_file import new_file
from vmkeep.errors import InputError
from vmkeep.fleet.model import parse_rate
from vmkeep.operations import files, repositories
from vmkeep.operations.request import Request, parse_pairs
from vmkeep.units import format_size

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path
    from typing import IO


@dataclass(frozen=True, slots=True)
class Choice:
    """What was typed."""

    targets: tuple[str, ...]
    kinds: tuple[str, ...]
    points: tuple[str, ...]
    run: str | None
    at: datetime | None
    rename: tuple[str, ...]
    overwrite: bool
    dependencies: bool
    folder: Path | None
    tar: Path | None
    paths: tuple[str, ...]
    owners: bool
    instant: bool = False
    bandwidth: str | None = None
    disks: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    storage: str | None = None
    hypervisors: tuple[str, ...] = ()

    @property
    def of_files(self) -> bool:
        """Whether files are restored beside the VMs."""
        return self.folder is not None or self.tar is not None


def request_of(choice: Choice, fleet: Path, repository: str | None) -> Request:
    """Return the request, after checks that need only the options.

    Raises:
        InputError: options contradict each other.
        NotFoundError: the run that was named made no recovery point of what is selected.
    """
    _check(choice)
    request = Request(
        operation="restore",
        fleet=fleet,
        targets=choice.targets,
        kinds=choice.kinds,
        at=choice.at,
        points=parse_pairs(list(choice.points), option="--point"),
        rename=parse_pairs(list(choice.rename), option="--as"),
        disks=choice.disks,
        networks=parse_pairs(list(choice.networks), option="--network", example="VMNetwork=dmz"),
        storage=choice.storage,
        hypervisors=choice.hypervisors,
        instant=choice.instant,
        bandwidth=rate(choice.bandwidth),
        overwrite=choice.overwrite,
        dependencies=choice.dependencies,
        repository=repository,
    )
    return request if choice.run is None else _of_run(request, choice.run, of_files=choice.of_files)


def rate(text: str | None) -> int:
    """Return a rate such as `50MiB/s` in bytes a second; 0 for none.

    Raises:
        InputError: it is no rate.
    """
    if text is None:
        return 0
    try:
        return parse_rate(text)
    except ValueError as error:
        raise InputError(f"--bandwidth: {error}") from error


def restore_files(choice: Choice, request: Request, *, as_json: bool) -> None:
    """Restore files into a folder, or write them as a tar archive.

    Raises:
        InputError: the target is not one VM with components that hold files.
        AccessError: owners cannot be restored without root.
    """
    if choice.folder is not None:
        report = files.into_folder(request, choice.folder, paths=choice.paths, owners=choice.owners)
        where = str(choice.folder)
    else:
        where = str(choice.tar)
        if where == "-" and as_json:
            raise InputError(
                "--tar - prints the archive where --json would print: say a file, or leave --json out"
            )
        with _archive(choice) as archive:
            report = files.as_tar(request, archive)
    for doubt in report.doubts:
        warn(doubt)
    if as_json:
        print_json(
            {"vm": report.vm, "session": report.session, "components": list(report.components), "to": where}
        )
        return
    told = f"{', '.join(report.components)} of {report.vm}, recovery point {report.session}: {where}"
    amount = f" ({format_size(report.size)})" if report.size else ""
    (err() if where == "-" else out()).print(f"restored {told}{amount}", markup=False)


def _archive(choice: Choice) -> AbstractContextManager[IO[bytes]]:
    if choice.tar is None or str(choice.tar) == "-":
        return nullcontext(sys.stdout.buffer)
    return new_file(choice.tar, overwrite=choice.overwrite)


def _check(choice: Choice) -> None:
    if choice.folder is not None and choice.tar is not None:
        raise InputError("say either --to or --tar")
    if choice.of_files and (choice.rename or choice.dependencies):
        raise InputError("--as and --with-dependencies are for restores into VMs, not for --to or --tar")
    if choice.of_files and choice.disks:
        raise InputError("--disk is for restores into VMs, not for --to or --tar")
    if choice.of_files and (choice.networks or choice.storage or choice.hypervisors):
        raise InputError("--network, --storage and --hypervisor are for VMs, not for --to or --tar")
    if choice.of_files and choice.instant:
        raise InputError("--instant is for restores into VMs, not for --to or --tar")
    if choice.bandwidth is not None and not choice.instant:
        raise InputError("--bandwidth limits what streams in behind VMs: it works with --instant")
    if (choice.paths or not choice.owners) and choice.folder is None:
        raise InputError("--path and --no-owners work with --to FOLDER")
    if choice.run is not None and (choice.points or choice.at is not None):
        raise InputError("--run names the recovery points: leave --point and --at out")


def _of_run(request: Request, run: str, *, of_files: bool) -> Request:
    """Return the request with the recovery points that *run* made."""
    file = load(request.fleet, request.repository)
    with repositories.open_repository(file) as repository:
        points = files.points_of_run(file, request, repository, run, of_files=of_files)
        return request.model_copy(update={"points": points})
