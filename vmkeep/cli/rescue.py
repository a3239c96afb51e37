"""`vmkeep rescue`: everything back from a store and a key, on a machine that has nothing else."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmkeep.cli import points, show
from vmkeep.cli.console import err, local_time, out, print_json, warn
from vmkeep.cli.secret import ask
from vmkeep.errors import InputError, IntegrityError, NotFoundError
from vmkeep.operations import extract
from vmkeep.operations import rescue as operation
from vmkeep.repository import Repository
from vmkeep.stores import S3Options, open_store
from vmkeep.units import format_size

if TYPE_CHECKING:
    from vmkeep.cli.secret import Given
    from vmkeep.operations.rescue import How, Rescued
    from vmkeep.repository import Opener, Point


@dataclass(frozen=True, slots=True)
class Source:
    """The store and its key, as typed."""

    url: str
    endpoint: str | None
    region: str | None
    given: Given

    def open(self) -> Repository:
        """Open the repository.

        Raises:
            AccessError: the key does not open it.
            NotFoundError: there is none.
        """
        if not self.url.startswith("s3://") and (self.endpoint or self.region):
            raise InputError(
                f"{self.url} is a directory: --s3-endpoint and --region are for s3://bucket/prefix"
            )
        if not self.url.startswith("s3://") and not Path(self.url).is_dir():
            raise NotFoundError(
                f"{self.url} is no directory; the store of a repository holds 'format' and 'packs'"
            )
        secret = self.given.secret(_kms_key) or ask(f"Passphrase of {self.url}")
        return Repository.open(open_store(self.url, s3=S3Options(self.endpoint, self.region)), secret)


@dataclass(frozen=True, slots=True)
class Which:
    """The recovery points to restore."""

    vm: str | None
    """By default all. Where files are restored alone, also one component of a VM: `vm/kind.name`."""
    session: str | None
    """By default the newest complete one."""


@dataclass(frozen=True, slots=True)
class Files:
    """Which files are restored alone, and how."""

    paths: tuple[str, ...]
    """By default all."""
    owners: bool
    kernel_mounts: bool
    """Whether this host's kernel may open file systems that nothing else can."""


def list_points(source: Source, vm: str | None, *, as_json: bool) -> None:
    """List the recovery points of all VMs, or of one."""
    with source.open() as repository:
        points.print_points(repository, vm, as_json=as_json)


def show_point(source: Source, vm: str, session: str | None, only: str | None, *, as_json: bool) -> None:
    """Print all about a recovery point, or one text of it as it is."""
    with source.open() as repository:
        point = _point(repository, vm, session)
    if only is not None:
        text = str(getattr(point, only))
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
    else:
        show.print_point(point, as_json=as_json)


def restore(source: Source, which: Which, folder: Path, how: How, *, as_json: bool) -> None:
    """Restore one VM, or all of them, and say what to do next.

    Raises:
        InputError: there is something of that name in the folder already.
        IntegrityError: something is damaged; all else is restored.
    """
    with source.open() as repository:
        names = operation.vms(repository) if which.vm is None else [which.vm]
        chosen = [_point(repository, name, which.session) for name in names]
        rescued = operation.rescue(repository, chosen, folder, how, told=_tell)
    if as_json:
        print_json([_record(one) for one in rescued])
    else:
        for one in rescued:
            _print(one)
        out().print(_NEXT.format(folder=folder, store=source.url), markup=False)
    failed = [f"{one.point.vm}/{name}: {why}" for one in rescued for name, why in one.failed.items()]
    if failed:
        raise IntegrityError("not restored:\n" + "\n".join(failed))


def restore_files(source: Source, which: Which, folder: Path, wanted: Files, *, as_json: bool) -> None:
    """Restore files of one VM, or of one component of it, under their paths in the guest.

    Raises:
        InputError: no VM was named, or not from which of its components.
        NotFoundError: the recovery point does not have what is wanted.
    """
    if which.vm is None:
        raise InputError("say of which VM or component: vmkeep rescue STORE restore db1/os --path P")
    vm, _, part = which.vm.partition("/")
    with source.open() as repository:
        point = _point(repository, vm, which.session, part=part)
        with repository.reading(point):
            found = extract.source(
                repository,
                point,
                [part] if part else [],
                single=bool(wanted.paths),
                kernel_mounts=wanted.kernel_mounts,
            )
            size = 0

            def count(more: int) -> None:
                nonlocal size
                size += more

            extract.into_folder(found, folder, paths=wanted.paths, owners=wanted.owners, progress=count)
    if as_json:
        print_json(
            {
                "vm": vm, "session": point.session, "components": list(found.components),
                "size": size, "to": str(folder),
            }
        )  # fmt: skip
        return
    what = f"{', '.join(found.components)} of {vm}, recovery point {point.session}"
    out().print(f"restored {what}: {folder} ({format_size(size)})", markup=False)


def _kms_key(key: str) -> Opener:
    from vmkeep.repository.kms import KmsKey  # noqa: PLC0415  (boto3 takes 0.3 s to import)

    return KmsKey(key)


def _point(repository: Repository, vm: str, session: str | None, *, part: str = "") -> Point:
    if session is not None:
        return repository.point(vm, session)
    return operation.newest(repository, vm, damaged=warn, part=part)


def _tell(component: str) -> None:
    err().print(f"restoring {component}", markup=False)


def _print(one: Rescued) -> None:
    point = one.point
    out().print(
        f"{point.vm}: recovery point {point.session} of {local_time(point.taken)}, in {one.folder}",
        markup=False,
    )
    for path in (*one.disks, *one.files.values()):
        out().print(f"  {path.relative_to(one.folder)}", markup=False)
    for name, why in point.missing.items():
        warn(f"{point.vm} is PARTIAL, it lacks {name}: {why}")


def _record(one: Rescued) -> dict[str, Any]:
    return {
        "vm": one.point.vm,
        "session": one.point.session,
        "folder": str(one.folder),
        "disks": [str(path) for path in one.disks],
        "files": {name: str(path) for name, path in one.files.items()},
        "missing": dict(one.point.missing),
        "failed": one.failed,
    }


_NEXT = """\
Next:
- Look at a disk:      qemu-img info {folder}/VM/DISK; or attach the images to a VM as vm.json describes it.
- Back up again:       vmkeep rescue {store} --key-file FILE show VM --only fleet-file > fleet.yaml
                       and say in it where store and key are now, and 'path: {folder}' for the hypervisor."""
