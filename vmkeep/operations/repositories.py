"""From the fleet file to an open repository: its store, and the secret that opens it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from vmkeep.fleet.lookup import login_of, text_of
from vmkeep.operations.state import cache_folder
from vmkeep.repository import Repository, parse_secret, read_key_file, read_key_variable
from vmkeep.repository.roles import UNLOCKED
from vmkeep.stores import Lock, S3Options, open_store, shared_pace

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.fleet import FleetFile
    from vmkeep.fleet.model import Place
    from vmkeep.repository import Opener
    from vmkeep.stores import Store

_MODES: Final[dict[str, Literal["GOVERNANCE", "COMPLIANCE"]]] = {
    "governance": "GOVERNANCE",
    "compliance": "COMPLIANCE",
}


def store_of(file: FleetFile) -> Store:
    """Open the store that the fleet file names.

    Raises:
        InputError: it is not there, or not reachable under this name.
    """
    config = file.fleet.repository
    lock = lock_of(config)
    options = S3Options(lock=lock)
    if config.s3 is not None:
        keys = {}
        if config.s3.credentials is not None:
            what = "repository.s3.credentials: the secret must read ACCESS_KEY:SECRET_KEY"
            access, secret = login_of(config.s3.credentials, file.path.absolute().parent, what=what)
            keys = {"access_key": access, "secret_key": secret}
        options = S3Options(
            endpoint_url=config.s3.endpoint_url,
            region=config.s3.region,
            profile=config.s3.profile,
            ca_bundle=file.resolve(config.s3.ca_bundle) if config.s3.ca_bundle else None,
            lock=lock,
            **keys,
        )
    rate = file.fleet.bandwidth
    pace = shared_pace(rate) if rate is not None else None
    return open_store(config.store, s3=options, base=file.path.absolute().parent, pace=pace)


def lock_of(config: Place) -> Lock | None:
    """Return how objects are locked."""
    if config.object_lock is None:
        return None
    mode = _MODES[config.object_lock.mode]
    return Lock(mode, config.object_lock.days, UNLOCKED)


def secret_of(file: FleetFile) -> Opener:
    """Return what opens the repository.

    Raises:
        AccessError: it cannot be read.
        InputError: it is a KMS key, and nothing says in which region.
    """
    key = file.fleet.repository.key
    if key.file is not None:
        return read_key_file(file.resolve(key.file))
    if key.env is not None:
        return read_key_variable(key.env)
    if key.kms is not None:
        return kms_key(file, key.kms)
    return parse_secret(text_of(key, file.path.absolute().parent))


def kms_key(file: FleetFile, key: str) -> Opener:
    """Return a key in AWS KMS, which is reached as the fleet file says.

    Raises:
        InputError: nothing says in which region it is, or the profile does not exist.
    """
    from vmkeep.repository.kms import KmsKey, KmsOptions  # noqa: PLC0415  (boto3 takes 0.3 s to import)

    config = file.fleet.repository.kms
    options = KmsOptions(config.endpoint_url, config.region, config.profile) if config else KmsOptions()
    return KmsKey(key, options)


def open_repository(file: FleetFile) -> Repository:
    """Open the fleet's repository.

    Raises:
        InputError: the store is not there.
        AccessError: the key does not open it.
        NotFoundError: no repository was made there yet.
    """
    return Repository.open(store_of(file), secret_of(file), cache=cache_folder(file.fleet.fleet))


def key_file(file: FleetFile) -> Path | None:
    """Return the key file that the fleet names, if it names one."""
    named = file.fleet.repository.key.file
    return None if named is None else file.resolve(named)
