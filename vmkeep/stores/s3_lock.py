"""Object Lock of a bucket: what S3 asks of puts, deletions, and whoever wants to know whether it works."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from vmkeep.stores.lock import Lock

_NO_LOCK: Final = {
    "NoSuchObjectLockConfiguration",
    "ObjectLockConfigurationNotFoundError",  # SeaweedFS, of an object too
}
_TRIED_FOR: Final = timedelta(seconds=3)
"""How long the object of a trial is locked: S3 knows no shorter lock than a second."""


class BucketLock:
    """Object Lock of one bucket. Errors are boto3's; the store translates them."""

    def __init__(self, client: Any, bucket: str, lock: Lock) -> None:
        self._client, self._bucket = client, bucket
        self.lock = lock

    def for_put(self, key: str) -> dict[str, Any]:
        """Return the parameters of a put, by the key in the store."""
        if not self.lock.covers(key):
            return {}
        until = self.lock.until(datetime.now(UTC))
        return {"ObjectLockMode": self.lock.mode, "ObjectLockRetainUntilDate": until}

    def until(self, name: str) -> datetime | None:
        """Return until when the object of this name in the bucket is locked."""
        try:
            answer = self._client.get_object_retention(Bucket=self._bucket, Key=name)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in _NO_LOCK:
                return None
            raise
        found: datetime = answer["Retention"]["RetainUntilDate"]
        return found.astimezone(UTC)

    def extend(self, name: str, until: datetime) -> None:
        """Lock the object until then. Shorter than it is, S3 refuses."""
        retention = {"Mode": self.lock.mode, "RetainUntilDate": until}
        self._client.put_object_retention(Bucket=self._bucket, Key=name, Retention=retention)

    def destroy(self, name: str) -> None:
        """Delete all versions of an object, and free their space; a plain deletion would only hide it."""
        pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self._bucket, Prefix=name)
        found = [
            one["VersionId"]
            for page in pages
            for kind in ("Versions", "DeleteMarkers")  # while a version stays, so does what hides it
            for one in page.get(kind, ())
            if one["Key"] == name
        ]
        for version in found:
            self._client.delete_object(Bucket=self._bucket, Key=name, VersionId=version)

    def problems(self, prefix: str) -> list[str]:
        """Return what keeps locks from working; an empty list: a locked object was put, and not deleted.

        The object that is put for that is deleted when its lock is over, some seconds later.

        Args:
            prefix: of the store in the bucket.
        """
        found = []
        try:
            answer = self._client.get_object_lock_configuration(Bucket=self._bucket)
            enabled = answer["ObjectLockConfiguration"].get("ObjectLockEnabled") == "Enabled"
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in _NO_LOCK:
                raise
            enabled = False
        if not enabled:
            found.append(f"bucket {self._bucket} has no object lock: only an administrator can turn it on")
        if self._client.get_bucket_versioning(Bucket=self._bucket).get("Status") != "Enabled":
            found.append(f"bucket {self._bucket} keeps no versions, which object lock needs: turn them on")
        return found or self._tried(f"{prefix}probe/lock-{secrets.token_hex(8)}")

    def skew(self) -> timedelta:
        """Return how far this machine's clock is ahead of the service's; locks end by the service's."""
        answer = self._client.head_bucket(Bucket=self._bucket)
        theirs = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return datetime.now(UTC) - theirs

    def _tried(self, name: str) -> list[str]:
        until = (datetime.now(UTC) - self.skew() + _TRIED_FOR).replace(microsecond=0)
        version = self._client.put_object(
            Bucket=self._bucket,
            Key=name,
            Body=b"lock",
            IfNoneMatch="*",
            ObjectLockMode=self.lock.mode,
            ObjectLockRetainUntilDate=until,
        ).get("VersionId")
        said = self.until(name)
        try:
            self._client.delete_object(Bucket=self._bucket, Key=name, VersionId=version)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in {"AccessDenied", "403"}:
                raise
            time.sleep(max(0.0, (until + self.skew() - datetime.now(UTC)).total_seconds()) + 1)
            self._client.delete_object(Bucket=self._bucket, Key=name, VersionId=version)
            return [] if said == until else [f"a lock until {until} was put, and the service says {said}"]
        return ["an object was deleted although it was locked"]
