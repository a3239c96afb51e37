"""Commands that carry something out: `configure`, `backup`, `restore`, `drill`, `verify`, `copy`."""

# ruff: noqa: PLC0415  (a command imports what it needs when it runs: see the package)

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from vmkeep.cli import options
from vmkeep.cli.options import examples

At = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME",
        formats=options.TIMES,
        help="As it was at this time: nothing taken later is used. Local time unless it has a zone.",
    ),
]  # fmt: skip


def configure(
    targets: options.Targets = None,
    fleet: options.Fleet = options.FLEET_FILE,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    direct: options.Direct = False,
    json: options.Json = False,
) -> None:
    """Make the VMs what the fleet file says. Disks are created and grown, never shrunk or deleted."""
    from vmkeep.cli import configure as dry
    from vmkeep.cli.runs import Mode, carry_out
    from vmkeep.operations.request import Request

    request = Request(operation="configure", fleet=fleet, targets=tuple(targets or ()))
    if dry_run:
        dry.differences(request, as_json=json)
    else:
        carry_out(request, Mode(direct=direct, as_json=json))


def backup(  # noqa: PLR0913  (each is an option)
    targets: options.Targets = None,
    fleet: options.Fleet = options.FLEET_FILE,
    kind: options.Kinds = None,
    resume: options.Resume = None,
    *,
    any_time: Annotated[
        bool, typer.Option("--any-time", help="Also while no window of the fleet is open.")
    ] = False,
    direct: options.Direct = False,
    json: options.Json = False,
) -> None:
    """Save the fleet, or parts of it. What the repository has already is not stored again.

    A backup that lacks a component ends with exit code 3, and its recovery point is marked PARTIAL.
    """
    from vmkeep.cli.runs import Mode, carry_out
    from vmkeep.operations.request import Request

    request = Request(
        operation="backup", fleet=fleet, targets=tuple(targets or ()), kinds=tuple(kind or ()),
        any_time=any_time,
    )  # fmt: skip
    carry_out(request, Mode(direct=direct, as_json=json, resume=resume))


def restore(  # noqa: PLR0913, PLR0917  (typer calls it, by name; each is an option)
    targets: options.Targets = None,
    fleet: options.Fleet = options.FLEET_FILE,
    kind: options.Kinds = None,
    point: options.Points = None,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Use the recovery points that this run made.")
    ] = None,
    at: At = None,
    rename: Annotated[
        list[str] | None,
        typer.Option("--as", metavar="VM=NAME", help="Restore a VM under another name. Repeatable."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Restore files into this folder, not into the VM.")
    ] = None,
    tar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the files as a tar archive; - prints it.")
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="With --to: only this file or folder of the guest. Repeatable."),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this disk, into a VM that exists. Repeatable."),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Connect what was on network OLD to NEW. Repeatable."),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make the disks there (libvirt: a storage pool).")
    ] = None,
    hypervisor: options.Hypervisors = None,
    repository: options.Repository = None,
    resume: options.Resume = None,
    *,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is restored in VMs that exist.")
    ] = False,
    instant: Annotated[
        bool,
        typer.Option("--instant", help="Start the VMs at once; their data streams in while they run."),
    ] = False,
    bandwidth: options.Bandwidth = None,
    with_dependencies: Annotated[
        bool, typer.Option("--with-dependencies", help="Also all that the targets depend on.")
    ] = False,
    no_owners: Annotated[
        bool,
        typer.Option("--no-owners", help="With --to: files become yours; needs no root. No devices."),
    ] = False,
    direct: options.Direct = False,
    json: options.Json = False,
) -> None:
    """Restore the fleet, VMs, components, or files; dependencies first, each VM checked before the next.

    Without --point, --run or --at it takes the newest recovery points that fit together. Where there are
    copies of the repository, it reads the one that has the newest of them, and of several the nearest.
    """
    from vmkeep.cli.restore import Choice, request_of, restore_files
    from vmkeep.cli.runs import Mode, carry_out

    choice = Choice(
        targets=tuple(targets or ()), kinds=tuple(kind or ()), points=tuple(point or ()), run=run, at=at,
        rename=tuple(rename or ()), overwrite=overwrite, dependencies=with_dependencies,
        folder=to, tar=tar, paths=tuple(path or ()), owners=not no_owners,
        instant=instant, bandwidth=bandwidth,
        disks=tuple(disk or ()), networks=tuple(network or ()), storage=storage,
        hypervisors=tuple(hypervisor or ()),
    )  # fmt: skip
    request = request_of(choice, fleet, repository)
    if choice.of_files:
        restore_files(choice, request, as_json=json)
    else:
        carry_out(request, Mode(direct=direct, as_json=json, resume=resume))


def stream(
    vm: Annotated[str | None, typer.Argument(help="The VM; none lists all.", show_default=False)] = None,
    fleet: options.Fleet = options.FLEET_FILE,
    bandwidth: options.Bandwidth = None,
    *,
    start: Annotated[bool, typer.Option("--start", help="Power the VM on first, if it is off.")] = False,
    json: options.Json = False,
) -> None:
    """Let the data of an instantly restored VM stream in, and wait for it; also after an interruption.

    Whatever was interrupted (the restore, the server of the recovery point, the VM, this host), the VM has
    all that it wrote. This starts the server again if need be, lets a VM go on that stood still without it,
    and lets the server go when all data is there.
    """
    from vmkeep.cli import stream as streaming
    from vmkeep.cli.fleet_file import load
    from vmkeep.cli.restore import rate

    if vm is None:
        streaming.show(load(fleet), as_json=json)
    else:
        streaming.follow(load(fleet), vm, bandwidth=rate(bandwidth), start=start, as_json=json)


def drill(  # noqa: PLR0913  (each is an option)
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SERVICE|VM]...",
            show_default=False,
            help="Services (the names in 'objectives') or VMs. All services by default, or all VMs.",
        ),
    ] = None,
    fleet: options.Fleet = options.FLEET_FILE,
    point: options.Points = None,
    at: At = None,
    repository: options.Repository = None,
    *,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Write all data before VMs start; else they run from the recovery point."
        ),
    ] = False,
    direct: options.Direct = False,
    json: options.Json = False,
) -> None:
    """Prove that services can be recovered: restored beside the originals, checked, timed, torn down.

    The VMs and all that they depend on are restored under other names into an isolated network. What was
    found out is kept in the repository. Exit code 3: all came back, and later than an objective allows.
    """
    from vmkeep.cli.runs import Mode, carry_out
    from vmkeep.operations.request import Request, parse_pairs

    request = Request(
        operation="drill",
        instant=not full,
        fleet=fleet,
        targets=tuple(targets or ()),
        points=parse_pairs(list(point or ()), option="--point"),
        at=at,
        repository=repository,
    )
    carry_out(request, Mode(direct=direct, as_json=json))


def verify(  # noqa: PLR0913  (each is an option)
    targets: options.Targets = None,
    fleet: options.Fleet = options.FLEET_FILE,
    point: options.Points = None,
    share: Annotated[str, typer.Option(metavar="PERCENT", help="How much of it to read back.")] = "100%",
    repository: options.Repository = None,
    *,
    packs: Annotated[
        bool,
        typer.Option(
            "--packs",
            help="All that is stored, or a --share of it: what was not read for the longest time.",
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Read nothing: is every pack there, with its size, and its checksum if the store has it?",
        ),
    ] = False,
    direct: options.Direct = False,
    json: options.Json = False,
) -> None:
    """Read the newest recovery points back and check every byte that is read."""
    from vmkeep.cli import verify as checks
    from vmkeep.cli.runs import Mode, carry_out

    if quick:
        checks.require_nothing_else(named=bool(targets or point), packs=packs)
        checks.quick(fleet, repository, share, as_json=json)
        return
    request = checks.request_of(fleet, tuple(targets or ()), tuple(point or ()), share)
    request = request.model_copy(update={"repository": repository, "packs": packs})
    carry_out(request, Mode(direct=direct, as_json=json))


def repair(
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
    *,
    json: options.Json = False,
) -> None:
    """Read back all that is stored, and store again what is damaged: from the fleet's copies, or its disks.

    Nothing is changed or deleted, but indexes that are damaged, when they were made again from packs. What
    is whole again is found beside what is broken, which 'vmkeep prune' removes later. What is taken must give
    exactly what the recovery point names; so disks of VMs that are powered off help as far as they are what
    they were.
    """
    from vmkeep.cli.fleet_file import load
    from vmkeep.cli.repair import repair as carry_out

    carry_out(load(fleet), repository, as_json=json)


def copy(
    targets: options.Targets = None,
    fleet: options.Fleet = options.FLEET_FILE,
    to: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only to this one of repository.copies. Repeatable."),
    ] = None,
    *,
    direct: options.Direct = False,
    json: options.Json = False,
) -> None:
    """Copy the recovery points of VMs into the fleet's other repositories: what these lack.

    Each has a key of its own. What was interrupted goes on where it was; of a disk that was copied before,
    only what differs is read.
    """
    from vmkeep.cli.runs import Mode, carry_out
    from vmkeep.operations.request import Request

    request = Request(operation="copy", fleet=fleet, targets=tuple(targets or ()), copies=tuple(to or ()))
    carry_out(request, Mode(direct=direct, as_json=json))


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(epilog=examples("vmkeep configure --dry-run", "vmkeep configure db1"))(configure)
    app.command(
        epilog=examples(
            "vmkeep backup",
            "vmkeep backup db1 'web*'",
            "vmkeep backup --kind databases",
            "vmkeep backup --resume 20260101T010000Z-0123abcd",
        )
    )(backup)
    app.command(
        epilog=examples(
            "vmkeep restore",
            "vmkeep restore app1 --with-dependencies --overwrite",
            "vmkeep restore db1 --as db1=db1-copy --at '2026-01-31 18:00'",
            "vmkeep restore app1 --with-dependencies --instant",
            "vmkeep restore db1/databases.orders --overwrite",
            "vmkeep restore db1/filesystems.exports --to ./found --path /srv/exports/a.txt --no-owners",
            "vmkeep restore db1/filesystems.exports --tar exports.tar",
        )
    )(restore)
    app.command(
        epilog=examples("vmkeep stream", "vmkeep stream db1", "vmkeep stream db1 --start --bandwidth 50MiB/s")
    )(stream)
    app.command(
        epilog=examples(
            "vmkeep drill", "vmkeep drill shop", "vmkeep plan drill shop", "vmkeep drill db1 --at 2026-01-31"
        )
    )(drill)
    app.command(
        epilog=examples(
            "vmkeep verify",
            "vmkeep verify db1 --share 5%",
            "vmkeep verify --packs --share 5%",
            "vmkeep verify --quick",
        )
    )(verify)
    app.command(epilog=examples("vmkeep repair", "vmkeep repair --repository offsite"))(repair)
    app.command(
        epilog=examples("vmkeep copy", "vmkeep copy db1 --to offsite", "vmkeep points --repository offsite")
    )(copy)
