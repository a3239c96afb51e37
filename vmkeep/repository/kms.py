"""Keys of AWS KMS that open a repository.

The master key never goes there. KMS makes a data key, hands it out in plain text once and wrapped by its own
key; the data key wraps the master key, and the slot keeps it wrapped:

    KMS key  --wraps-->  data key  --wraps-->  master key
    (stays in KMS)       (plain text in the memory of a process, while a slot is opened or made)

See: AWS KMS Developer Guide, "Data keys" and "Encryption context".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    ProfileNotFound,
)

from vmkeep.errors import AccessError, InputError, TemporaryError, VmkeepError

if TYPE_CHECKING:
    from collections.abc import Callable

_CONTEXT: Final = "vmkeep:repository"
"""The key of the encryption context; stands in policies and in CloudTrail."""
_ATTEMPTS: Final = 5
_TIMEOUT_S: Final = 10
_ARN: Final = re.compile(r"arn:[a-z-]+:kms:(?P<region>[a-z0-9-]+):\d*:(key|alias)/.+")
_OTHER_KEY: Final = {"IncorrectKeyException", "InvalidCiphertextException"}
_UNUSABLE: Final = {"DisabledException", "KMSInvalidStateException"}
_MISTAKEN: Final = {
    "NotFoundException",
    "ValidationException",
    "InvalidKeyUsageException",
    "InvalidArnException",
}
_DENIED: Final = {
    "AccessDeniedException", "AccessDenied", "UnrecognizedClientException", "ExpiredTokenException",
    "InvalidSignatureException", "IncompleteSignature", "InvalidClientTokenId", "MissingAuthenticationToken",
    "OptInRequired", "NotAuthorized",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class KmsOptions:
    """How to reach the service; what is `None` comes from boto3's own chain."""

    endpoint_url: str | None = None
    region: str | None = None
    """By default the one in the key's ARN."""
    profile: str | None = None


class KmsKey:
    """A symmetric key in AWS KMS; see `secret.KeyService`.

    Args:
        key: its ARN, its id, or an alias (`alias/NAME`, or the ARN of one).

    Raises:
        InputError: it is empty, the profile does not exist, or nothing says which region.
    """

    def __init__(self, key: str, options: KmsOptions | None = None) -> None:
        if not key.strip():
            raise InputError("the KMS key of the repository is empty: write its ARN")
        self.key = key.strip()
        self._options = options or KmsOptions()
        named = _ARN.fullmatch(self.key)
        self._client = _connect(self.key, self._options, named["region"] if named else None)

    def __str__(self) -> str:
        return f"the KMS key {self.key}"

    def new_key(self, repository: bytes) -> tuple[bytes, bytes, str]:
        """Have a data key made.

        Returns:
            The data key (32 bytes), the same as KMS wrapped it, and the ARN of the key it did that with.

        Raises:
            AccessError, InputError, TemporaryError: KMS does not do it; the message says what to do.
        """
        answer = self._ask(
            lambda: self._client.generate_data_key(
                KeyId=self.key, KeySpec="AES_256", EncryptionContext=_context(repository)
            ),
            "make a data key with",
        )
        return answer["Plaintext"], answer["CiphertextBlob"], answer["KeyId"]

    def open_key(self, wrapped: bytes, repository: bytes) -> bytes:
        """Have a data key unwrapped.

        The key is named, although KMS would find it by itself: otherwise whoever can write to the store could
        have a slot opened that was wrapped by a key of their own.

        Raises:
            AccessError: it was wrapped by another key or for another repository, or KMS does not allow it.
            InputError, TemporaryError: as for `new_key`.
        """
        answer = self._ask(
            lambda: self._client.decrypt(
                KeyId=self.key, CiphertextBlob=wrapped, EncryptionContext=_context(repository)
            ),
            "decrypt with",
        )
        plain: bytes = answer["Plaintext"]
        return plain

    def _ask(self, call: Callable[[], dict[str, Any]], verb: str) -> dict[str, Any]:
        what = f"cannot {verb} {self} in {self._client.meta.region_name}"
        try:
            return call()
        except ClientError as error:
            raise _answer(error, what) from error
        except NoCredentialsError as error:
            raise AccessError(f"{what}: no credentials were found; set them as for any AWS tool") from error
        except BotoCoreError as error:
            raise TemporaryError(f"{what}: {error}") from error


def _context(repository: bytes) -> dict[str, str]:
    return {_CONTEXT: repository.hex()}


def _answer(error: ClientError, what: str) -> VmkeepError:
    """Say in our words what went wrong, and so what to do next."""
    said = error.response.get("Error", {})
    code = str(said.get("Code", "")).rpartition("#")[2]
    reason = f"{code}: {said.get('Message', '')}".rstrip(": ")
    if code in _OTHER_KEY:
        return AccessError(
            f"wrong key: {what}: {reason}; it was wrapped by another KMS key, or for another repository"
        )
    if code in _UNUSABLE:
        return AccessError(
            f"{what}: {reason}; enable the key, or cancel its deletion; meanwhile any other slot opens the "
            "repository ('vmkeep key list')"
        )
    if code in _MISTAKEN:
        return InputError(f"{what}: {reason}; check the key's ARN and region, and that it is a symmetric one")
    if code in _DENIED:
        return AccessError(
            f"{what}: {reason}; check the credentials, and that they may kms:Decrypt with it (to add a slot: "
            "kms:GenerateDataKey)"
        )
    if code in {"RequestTimeTooSkewed", "RequestExpired"}:
        return AccessError(f"{what}: {reason}; this machine's clock is wrong: set it")
    return TemporaryError(f"{what}: {reason}")


def _connect(key: str, options: KmsOptions, region: str | None) -> Any:
    config = Config(
        connect_timeout=_TIMEOUT_S,
        read_timeout=_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )
    try:
        session = boto3.Session(profile_name=options.profile, region_name=options.region or region)
        return session.client("kms", endpoint_url=options.endpoint_url, config=config)
    except ProfileNotFound as error:
        raise InputError(f"{error}; list the profiles with 'aws configure list-profiles'") from error
    except NoRegionError as error:
        raise InputError(
            f"nothing says in which region the KMS key {key} is: write its whole ARN, or set "
            "repository.kms.region or AWS_REGION"
        ) from error
    except (BotoCoreError, ValueError) as error:
        raise InputError(f"cannot use KMS at {options.endpoint_url or 'AWS'}: {error}") from error
