"""Commands about what was saved: `points`, `show`, `mount`, `rescue`."""

# ruff: noqa: PLC0415  (a command imports what it needs when it runs: see the package)

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vmkeep.cli import options
from vmkeep.cli.options import examples


def points(
    vm: Annotated[str | None, typer.Argument(help="Only of this VM.", show_default=False)] = None,
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
    *,
    json: options.Json = False,
) -> None:
    """List the recovery points, oldest first."""
    from vmkeep.cli.points import points as carry_out

    carry_out(fleet, vm, repository, as_json=json)


def show(  # noqa: PLR0913, PLR0917  (typer calls it, by name; each is an option)
    vm: Annotated[str, typer.Argument(help="The VM.", show_default=False)],
    session: Annotated[
        str, typer.Argument(help="The recovery point's session, or the beginning of it.")
    ] = "latest",
    fleet: options.Fleet = options.FLEET_FILE,
    files: Annotated[
        str | None,
        typer.Option(metavar="COMPONENT", help="List the files of this component."),
    ] = None,
    path: Annotated[
        str, typer.Option(metavar="PATH", help="With --files: only this file or folder, and all below it.")
    ] = "/",
    repository: options.Repository = None,
    *,
    json: options.Json = False,
) -> None:
    """Show all about one recovery point, or the files in it."""
    from vmkeep.cli import show as shown
    from vmkeep.cli.fleet_file import load

    if files is None:
        shown.show(load(fleet, repository), vm, session, as_json=json)
    else:
        shown.show_files(load(fleet, repository), vm, session, files, path=path, as_json=json)


def mount(  # noqa: PLR0913, PLR0917  (typer calls it, by name; each is an option)
    target: Annotated[
        str, typer.Argument(metavar="VM[/DISK]", help="The VM, or one of its disks.", show_default=False)
    ],
    session: Annotated[
        str, typer.Argument(help="The recovery point's session, or the beginning of it.")
    ] = "latest",
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
    socket: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Serve NBD on this unix socket; a new one by default."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve NBD there, to all who can reach it: unencrypted."),
    ] = None,
    files: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also as raw files in this folder, through FUSE.")
    ] = None,
    *,
    json: options.Json = False,
) -> None:
    """Offer the disks of a recovery point read-only, without restoring them, until this is interrupted.

    Any NBD client can read them: qemu-img, a VM that boots from an overlay, nbd-client. Only what is read is
    fetched, and every byte of it is checked.
    """
    from vmkeep.cli import mount as mounting
    from vmkeep.cli.fleet_file import load

    mounting.mount(
        load(fleet, repository), target, session, socket=socket, listen=listen, folder=files, as_json=json
    )


class Action(StrEnum):
    """What is rescued."""

    LIST = "list"
    SHOW = "show"
    RESTORE = "restore"


class Text(StrEnum):
    """A text that lies in a recovery point."""

    FLEET_FILE = "fleet-file"
    DEFINITION = "definition"
    INSTRUCTIONS = "instructions"


def rescue(  # noqa: PLR0913  (each option is one)
    store: Annotated[str, typer.Argument(help="s3://bucket/prefix, or a folder.", show_default=False)],
    action: Annotated[Action, typer.Argument(help="What to do.")] = Action.LIST,
    vm: Annotated[
        str | None,
        typer.Argument(
            help="The VM; all by default. restore: also VM/COMPONENT, of which files are restored alone.",
            show_default=False,
        ),
    ] = None,
    session: Annotated[
        str | None,
        typer.Argument(help="The recovery point; the newest complete one by default.", show_default=False),
    ] = None,
    *,
    key_file: options.KeyFile = None,
    passphrase_env: options.PassphraseVariable = None,
    kms: options.KmsKey = None,
    s3_endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Of an S3 service that is not AWS.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="Of the S3 service.")] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="restore: where to; a folder for each VM is made in it."),
    ] = None,
    only: Annotated[Text | None, typer.Option(help="show: print this text, and nothing else.")] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="restore: only this file or folder, absolute as the guest sees it; also out of a disk that "
            "was saved whole; repeatable.",
        ),
    ] = None,
    kernel_mounts: Annotated[
        bool,
        typer.Option(
            "--kernel-mounts", help="restore --path: let this host's kernel open xfs, btrfs...; needs root."
        ),
    ] = False,
    tar: Annotated[
        bool, typer.Option("--tar", help="restore: files as tar archives; needs no root.")
    ] = False,
    owners: Annotated[
        bool, typer.Option("--owners/--no-owners", help="restore: give files their owners; needs root.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="restore: replace what is there.")] = False,
    json: options.Json = False,
) -> None:
    """List, show and restore what a store holds, with its key and nothing else: no fleet file, no Prefect."""
    from vmkeep.cli import rescue as rescued
    from vmkeep.cli.secret import Given
    from vmkeep.errors import InputError
    from vmkeep.operations.rescue import How

    source = rescued.Source(store, s3_endpoint, region, Given(key_file, passphrase_env, kms))
    if action is Action.LIST:
        rescued.list_points(source, vm, as_json=json)
    elif action is Action.SHOW:
        if vm is None:
            raise InputError("say which VM to show; 'vmkeep rescue STORE list' has them")
        rescued.show_point(source, vm, session, only and only.value.replace("-", "_"), as_json=json)
    else:
        if to is None:
            raise InputError("say where to restore to: --to FOLDER")
        which = rescued.Which(vm, session)
        if path or "/" in (vm or ""):
            if tar or overwrite:
                raise InputError("--tar and --overwrite are for whole VMs, not for --path or VM/COMPONENT")
            wanted = rescued.Files(tuple(path or ()), owners, kernel_mounts)
            rescued.restore_files(source, which, to, wanted, as_json=json)
            return
        if kernel_mounts:
            raise InputError("--kernel-mounts is for files out of whole disks: say which with --path")
        how = How(archives=tar, owners=owners, overwrite=overwrite)
        rescued.restore(source, which, to, how, as_json=json)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(epilog=examples("vmkeep points", "vmkeep points db1 --json"))(points)
    app.command(
        epilog=examples(
            "vmkeep show db1",
            "vmkeep show db1 20260101T01",
            "vmkeep show db1 --files filesystems.exports",
            "vmkeep show db1 --files os --path /etc",
        )
    )(show)
    app.command(
        epilog=examples(
            "vmkeep mount db1",
            "vmkeep mount db1/root 20260101T01 --files ./disks",
            "vmkeep mount db1 --listen 127.0.0.1:10809",
        )
    )(mount)
    app.command(
        epilog=examples(
            "vmkeep rescue /mnt/backups --key-file shop.key",
            "vmkeep rescue s3://vmkeep-shop/prod --key-file shop.key show db1",
            "vmkeep rescue s3://vmkeep-shop/prod --key-file shop.key show db1 --only fleet-file > fleet.yaml",
            "vmkeep rescue s3://vmkeep-shop/prod --key-file shop.key restore db1 --to ./rescued",
            "vmkeep rescue /mnt/backups --key-file shop.key restore db1/os --to ./found --path /etc/hosts",
        )
    )(rescue)
