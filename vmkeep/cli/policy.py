"""`vmkeep policy`: what the credentials of each role should be allowed, as JSON for S3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep import fleet as fleets
from vmkeep.cli.console import print_json, warn
from vmkeep.errors import InputError
from vmkeep.operations import repositories
from vmkeep.operations.policy import Place
from vmkeep.operations.policy import policy as policy_of
from vmkeep.stores.naming import split_s3_url

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def policy(
    fleet: Path, repository: str | None, role: str, principals: Sequence[str], *, conditional: bool
) -> None:
    """Print the policy of a role for the fleet's repository; needs neither key nor credentials.

    Raises:
        InputError: the repository is not on S3.
    """
    config = fleets.load(fleet).at(repository).fleet.repository
    if not config.store.startswith("s3://"):
        raise InputError(
            f"{config.store} is a directory, and has no policies: give the folder to a user of its own; see "
            "'Roles' in docs/security.md"
        )
    bucket, prefix = split_s3_url(config.store)
    place = Place(bucket, prefix, config.s3.region if config.s3 else None)
    lock = repositories.lock_of(config)
    key = config.key.kms
    if key is not None and ":key/" not in key:
        warn(f"the policy lacks kms:Decrypt: name the key by its ARN (…:key/…), for {key} is an alias")
        key = None
    print_json(policy_of(role, place, principals=principals, conditional=conditional, lock=lock, kms_key=key))
