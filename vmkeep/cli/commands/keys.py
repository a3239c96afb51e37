"""Commands about who may use the repository: `key`, `policy`."""

# ruff: noqa: PLC0415  (a command imports what it needs when it runs: see the package)

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vmkeep.cli import options
from vmkeep.cli.options import examples

Name = Annotated[str, typer.Argument(metavar="SLOT", help="The slot's name.", show_default=False)]


def new(file: Annotated[Path, typer.Argument(help="The file to write.", show_default=False)]) -> None:
    """Make a key file, for its owner only. It opens nothing until it is added."""
    from vmkeep.cli.key import new as carry_out

    carry_out(file)


def list_all(
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
    *,
    json: options.Json = False,
) -> None:
    """List the key slots, what opens each, and when it was made. Needs no key."""
    from vmkeep.cli.fleet_file import load
    from vmkeep.cli.key import list_all as carry_out

    carry_out(load(fleet, repository), as_json=json)


def add(  # noqa: PLR0913, PLR0917  (typer calls it, by name; each is an option)
    slot: Name,
    key_file: options.KeyFile = None,
    passphrase_env: options.PassphraseVariable = None,
    kms: options.KmsKey = None,
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
) -> None:
    """Let another key or passphrase open the repository too; asks for a passphrase by default."""
    from vmkeep.cli.fleet_file import load
    from vmkeep.cli.key import add as carry_out
    from vmkeep.cli.secret import Given

    carry_out(load(fleet, repository), slot, Given(key_file, passphrase_env, kms))


def remove(  # noqa: PLR0913, PLR0917  (typer calls it, by name; each is an option)
    slot: Name,
    key_file: options.KeyFile = None,
    passphrase_env: options.PassphraseVariable = None,
    kms: options.KmsKey = None,
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
) -> None:
    """Remove a slot. The key at hand (the fleet's, by default) must open another one, which stays."""
    from vmkeep.cli.fleet_file import load
    from vmkeep.cli.key import remove as carry_out
    from vmkeep.cli.secret import Given

    carry_out(load(fleet, repository), slot, Given(key_file, passphrase_env, kms))


def check(  # noqa: PLR0913  (each is an option)
    key_file: options.KeyFile = None,
    passphrase_env: options.PassphraseVariable = None,
    kms: options.KmsKey = None,
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
    *,
    json: options.Json = False,
) -> None:
    """Try a key: the fleet's by default, or the copy from the safe."""
    from vmkeep.cli.fleet_file import load
    from vmkeep.cli.key import check as carry_out
    from vmkeep.cli.secret import Given

    carry_out(load(fleet, repository), Given(key_file, passphrase_env, kms), as_json=json)


def rotate(  # noqa: PLR0913  (each is an option)
    key_file: options.KeyFile = None,
    passphrase_env: options.PassphraseVariable = None,
    kms: options.KmsKey = None,
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
    *,
    json: options.Json = False,
) -> None:
    """Encrypt with new keys what is written from now on, after a key got into wrong hands.

    Only the key at hand (the fleet's, by default) opens the new data epoch; add the others again. What is
    stored stays as it is, until 'vmkeep key reencrypt'. The next backup of each disk stores it whole.
    """
    from vmkeep.cli.fleet_file import load
    from vmkeep.cli.key import rotate as carry_out
    from vmkeep.cli.secret import Given

    carry_out(load(fleet, repository), Given(key_file, passphrase_env, kms), as_json=json)


def reencrypt(
    fleet: options.Fleet = options.FLEET_FILE,
    repository: options.Repository = None,
    *,
    json: options.Json = False,
) -> None:
    """Write with the newest keys what was stored before 'vmkeep key rotate', and delete the old packs."""
    from vmkeep.cli.fleet_file import load
    from vmkeep.cli.key import reencrypt as carry_out

    carry_out(load(fleet, repository), as_json=json)


class Role(StrEnum):
    """Whose credentials."""

    WRITER = "writer"
    COLLECTOR = "collector"
    RESTORER = "restorer"


def policy(
    role: Annotated[
        Role,
        typer.Option(
            help="writer: backs up. collector: prunes. restorer: restores, verifies.", show_default=False
        ),
    ],
    fleet: options.Fleet = options.FLEET_FILE,
    principal: Annotated[
        list[str] | None,
        typer.Option(metavar="ARN", help="Print a bucket policy for this user or role. Repeatable."),
    ] = None,
    repository: options.Repository = None,
    *,
    overwriting: Annotated[
        bool,
        typer.Option(
            "--allow-overwriting",
            help="Leave out the condition s3:if-none-match, for services that do not know it.",
        ),
    ] = False,
) -> None:
    """Print the least S3 policy that lets a role do its work in the fleet's repository. Changes nothing."""
    from vmkeep.cli.policy import policy as carry_out

    carry_out(fleet, repository, role.value, tuple(principal or ()), conditional=not overwriting)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the program."""
    key = typer.Typer(help="Say which keys and passphrases open the repository.", no_args_is_help=True)
    key.command(epilog=examples("vmkeep key new emergency.key"))(new)
    key.command("list", epilog=examples("vmkeep key list", "vmkeep key list --json"))(list_all)
    key.command(
        epilog=examples(
            "vmkeep key add safe",
            "vmkeep key add emergency --key-file emergency.key",
            "vmkeep key add safe --passphrase-env SAFE_PASSPHRASE",
            "vmkeep key add cloud --kms arn:aws:kms:eu-central-1:111122223333:alias/vmkeep",
        )
    )(add)
    key.command(epilog=examples("vmkeep key remove emergency"))(remove)
    key.command(epilog=examples("vmkeep key check", "vmkeep key check --key-file emergency.key"))(check)
    key.command(epilog=examples("vmkeep key rotate", "vmkeep key rotate --key-file new.key"))(rotate)
    key.command(epilog=examples("vmkeep key reencrypt"))(reencrypt)
    app.add_typer(key, name="key")
    app.command(
        epilog=examples(
            "vmkeep policy --role writer > writer.json",
            "vmkeep policy --role restorer --principal arn:aws:iam::123456789012:user/restorer",
        )
    )(policy)
