"""Objects in a bucket of an S3 service."""

from __future__ import annotations

import base64
import contextlib
import io
import ipaddress
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ProfileNotFound, SSLError
from s3transfer.utils import signal_not_transferring, signal_transferring
from urllib3.exceptions import HTTPError

from vmkeep.errors import AccessError, InputError, NotFoundError, TemporaryError, VmkeepError
from vmkeep.stores.base import ObjectInfo
from vmkeep.stores.naming import check_key, split_s3_url
from vmkeep.stores.pace import PacedFile
from vmkeep.stores.s3_lock import BucketLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from vmkeep.stores.lock import Lock
    from vmkeep.stores.open import S3Options
    from vmkeep.stores.pace import Pace

_CONNECT_TIMEOUT: Final = 10
_READ_TIMEOUT: Final = 60
"""Seconds without a byte; a 64 MiB pack over a slow line still moves."""
_ATTEMPTS: Final = 5
_CONFLICT_PAUSES: Final = (0.1, 0.3, 1.0, 3.0)
"""Seconds before trying again after 409: another writer of the same key was in the middle of it."""
_DENIED: Final = {
    "401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
    "InvalidToken", "AllAccessDisabled", "AccountProblem", "Forbidden",
}  # fmt: skip
_FORBIDDEN: Final = {"AccessDenied", "403", "Forbidden"}
_MISTAKEN: Final = {"InvalidBucketName", "PermanentRedirect", "AuthorizationHeaderMalformed"}
_NO_LOCKS: Final = "InvalidRequest"
"""The answer to a put with a lock into a bucket that cannot lock; without a lock it may mean anything."""


class S3Store:
    """Keeps each object under its key behind the prefix of the URL.

    Args:
        url: `s3://bucket/prefix`.
        pace: how fast objects are sent.

    Raises:
        InputError: the URL names no bucket, or the profile does not exist.
    """

    def __init__(self, url: str, options: S3Options, *, pace: Pace | None = None) -> None:
        self._bucket, self._prefix = split_s3_url(url)
        self._pace = pace
        self._endpoint = options.endpoint_url or "AWS"
        self._client = _connect(options)
        if pace is not None:
            _tell_when_sending(self._client)
        self._lock = BucketLock(self._client, self._bucket, options.lock) if options.lock else None

    @property
    def url(self) -> str:
        """The URL that was given."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def lock(self) -> Lock | None:
        """How objects are locked when they are put."""
        return self._lock.lock if self._lock is not None else None

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        """See `Store`.

        botocore repeats a request whose answer was lost, and then reports that the key exists although
        our own write made it: the caller reads back and compares, as after any false.
        """
        for pause in (*_CONFLICT_PAUSES, None):
            try:
                self._put(key, body)
            except ClientError as error:
                code = _code(error)
                if code in {"PreconditionFailed", "412"}:
                    return False
                if code not in {"ConditionalRequestConflict", "OperationAborted", "409"} or pause is None:
                    raise self._error(error, "write", key) from error
                time.sleep(pause)
            except (BotoCoreError, HTTPError) as error:
                raise self._error(error, "write", key) from error
            else:
                return True
        raise AssertionError  # the last round returns or raises

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Store`."""
        if length == 0:
            return b""
        wanted: dict[str, str] = {}
        if start or length is not None:
            end = "" if length is None else str(start + length - 1)
            wanted["Range"] = f"bytes={start}-{end}"
        with self._translated("read", key):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key), **wanted)
            except ClientError as error:
                if _code(error) in {"InvalidRange", "416"}:
                    return b""
                if _code(error) in _FORBIDDEN and not self._listed(key):
                    raise NotFoundError(f"{self.url}/{key}: there is no such object") from error
                raise
            with contextlib.closing(answer["Body"]) as stream:
                data: bytes = stream.read()
        if len(data) != answer["ContentLength"]:
            raise TemporaryError(
                f"{self.url}: {key} was cut off after {len(data)} of {answer['ContentLength']} bytes"
            )
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        with self._translated("list", prefix):
            found = [
                ObjectInfo(item["Key"][len(self._prefix) :], item["Size"])
                for page in pages
                for item in page.get("Contents", ())
            ]
        # AWS lists in order of key, other services (SeaweedFS) in the order of a walk through folders.
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """See `Store`.

        Where objects are locked all versions are deleted, or none: `AccessError` says that one is locked.
        """
        with self._translated("delete", key):
            if self._lock is not None:
                self._lock.destroy(self._key(key))
            else:
                self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def crc32(self, key: str) -> int | None:
        """See `ChecksumStore`: boto3 sends it with every put, and the service compared it then."""
        with self._translated("look at", key):
            answer = self._client.head_object(Bucket=self._bucket, Key=self._key(key), ChecksumMode="ENABLED")
        text = str(answer.get("ChecksumCRC32", ""))
        # Of an object that somebody put in parts it is "...-N", and no checksum of the whole.
        return int.from_bytes(base64.b64decode(text)) if text and "-" not in text else None

    def locked_until(self, key: str) -> datetime | None:
        """See `LockingStore`."""
        with self._translated("read the lock of", key):
            return self._lock.until(self._key(key)) if self._lock is not None else None

    def extend_lock(self, key: str, until: datetime) -> None:
        """See `LockingStore`."""
        if self._lock is None:
            raise InputError(f"{self.url} was opened without a lock")
        with self._translated("lock", key):
            self._lock.extend(self._key(key), until)

    def lock_problems(self) -> tuple[tuple[str, ...], timedelta]:
        """Try whether locks work; takes some seconds.

        Returns:
            What is wrong, and how far this machine's clock is ahead of the service's.
        """
        with self._translated("try the locks of", ""):
            if self._lock is None:
                return (), timedelta()
            return tuple(self._lock.problems(self._prefix)), self._lock.skew()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _listed(self, key: str) -> bool:
        """Tell whether the object is there, or may be for all we know.

        S3 says "denied" of an object that is not there, unless all of the bucket may be listed. The least a
        role needs is to list below its prefix.
        """
        try:
            return any(info.key == key for info in self.list(key))
        except VmkeepError:
            return True

    def _put(self, key: str, body: bytes | Path) -> None:
        how = {"Bucket": self._bucket, "Key": self._key(key), "IfNoneMatch": "*"}
        if self._lock is not None:
            how |= self._lock.for_put(key)
        with io.BytesIO(body) if isinstance(body, bytes) else body.open("rb") as file:
            paced = PacedFile(file, self._pace, sending=False) if self._pace is not None else file
            self._client.put_object(Body=paced, **how)  # botocore seeks back to repeat

    @contextlib.contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError, HTTPError) as error:
            raise self._error(error, verb, key) from error

    def _error(self, error: Exception, verb: str, key: str) -> VmkeepError:
        """Say in our words what went wrong, and so what to do next."""
        what = f"cannot {verb} {self.url}{'/' if key else ''}{key} at {self._endpoint}"
        if isinstance(error, ClientError):
            return self._answer(error, what)
        if isinstance(error, NoCredentialsError):
            return AccessError(f"{what}: no credentials were found; set them as for any AWS tool")
        if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            return AccessError(f"{what}: {error}; if it is the right server, name its authority in ca_bundle")
        return TemporaryError(f"{what}: {error}")

    def _answer(self, error: ClientError, what: str) -> VmkeepError:
        code = _code(error)
        reason = f"{code}: {error.response.get('Error', {}).get('Message', '')}".rstrip(": ")
        if code in {"NoSuchKey", "404", "NotFound"}:
            return NotFoundError(f"{what}: there is no such object")
        if code == "NoSuchBucket":
            return InputError(f"{what}: there is no bucket {self._bucket!r}; create it, or correct the store")
        if code == "RequestTimeTooSkewed":
            return AccessError(f"{what}: {reason}; this machine's clock is wrong: set it")
        if code in _DENIED:
            return AccessError(f"{what}: {reason}; check the credentials and their policy")
        if code in _MISTAKEN or (code == _NO_LOCKS and self._lock is not None):
            locks = "bucket: object_lock needs one made with object lock"
            place = "URL and region" if code in _MISTAKEN else locks
            return InputError(f"{what}: {reason}; check the store's {place}")
        return TemporaryError(f"{what}: {reason}")


def _connect(options: S3Options) -> Any:
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT,
        read_timeout=_READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=16,
        # Hashing every body for the signature costs more than sending it. TLS, or the loopback device,
        # protects it on the way, and every chunk is authenticated by ourselves.
        s3={"payload_signing_enabled": not _is_private(options.endpoint_url)},
    )
    try:
        session = boto3.Session(
            profile_name=options.profile,
            region_name=options.region or ("us-east-1" if options.endpoint_url else None),
            aws_access_key_id=options.access_key,
            aws_secret_access_key=options.secret_key,
        )
        return session.client(
            "s3",
            endpoint_url=options.endpoint_url,
            config=config,
            verify=str(options.ca_bundle) if options.ca_bundle else None,
        )
    except ProfileNotFound as error:
        raise InputError(f"{error}; list the profiles with 'aws configure list-profiles'") from error
    except (BotoCoreError, ValueError) as error:
        raise InputError(f"cannot use S3 at {options.endpoint_url or 'AWS'}: {error}") from error


def _tell_when_sending(client: Any) -> None:
    """Let bodies know when they are sent, and when botocore reads them for a signature or checksum."""
    events = client.meta.events
    events.register_first("request-created.s3", signal_not_transferring)
    events.register_last("request-created.s3", signal_transferring)


def _is_private(endpoint: str | None) -> bool:
    """Tell whether nobody between us and *endpoint* can change a body on its way."""
    if endpoint is None or endpoint.startswith("https://"):
        return True
    host = urlsplit(endpoint).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
