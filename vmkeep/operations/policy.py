"""The S3 policy of a role: exactly what the role does, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from vmkeep.repository.roles import COLLECTOR, EXTENDED, ROLES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmkeep.stores import Lock

_BEGINNING: Final = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the repository is."""

    bucket: str
    prefix: str
    """Empty, or ends in `/`."""
    region: str | None = None

    def arn(self, key: str | None = None) -> str:
        """Return the name of an object, of all below a key that ends in `/`, or of the bucket."""
        bucket = f"arn:{_partition(self.region)}:s3:::{self.bucket}"
        return bucket if key is None else f"{bucket}/{self.prefix}{key}{'*' if key.endswith('/') else ''}"


def policy(  # noqa: PLR0913  (each is a keyword, and none belongs to another)
    role: str,
    place: Place,
    *,
    principals: Iterable[str] = (),
    conditional: bool = True,
    lock: Lock | None = None,
    kms_key: str | None = None,
) -> dict[str, Any]:
    """Return the policy of *role*, one of `ROLES`: for a user, or for the bucket if *principals* are named.

    Args:
        principals: the ARNs of those who get the role.
        conditional: only allow puts of objects that do not exist. See: Amazon S3 User Guide, "Enforce
            conditional writes on Amazon S3 buckets". Services that do not know the condition deny every put.
        lock: how objects are locked.
        kms_key: the ARN of the KMS key that opens the repository; a bucket's policy cannot speak of it.
    """
    rights = ROLES[role]
    only_new = {"Condition": {"Null": {"s3:if-none-match": "false"}}} if conditional else {}
    below = {"Condition": {"StringLike": {"s3:prefix": f"{place.prefix}*"}}} if place.prefix else {}
    statements: list[dict[str, Any]] = [
        {"Sid": "List", "Action": "s3:ListBucket", "Resource": place.arn(), **below},
        {"Sid": "Read", "Action": "s3:GetObject", "Resource": [*map(place.arn, rights.read)]},
        {"Sid": "Put", "Action": "s3:PutObject", "Resource": [*map(place.arn, rights.put)], **only_new},
    ]
    if rights.delete:
        resources = [*map(place.arn, rights.delete)]
        statements.append({"Sid": "Delete", "Action": "s3:DeleteObject", "Resource": resources})
    if lock is not None:
        statements += _locking(role, place, lock, below, conditional=conditional)
    if kms_key is not None and not principals:
        statements.append({"Sid": "OpenKey", "Action": "kms:Decrypt", "Resource": kms_key})
    who = {"Principal": {"AWS": sorted(principals)}} if principals else {}
    return {
        "Version": "2012-10-17",
        "Statement": [
            {**one, "Sid": f"Vmkeep{role.title()}{one['Sid']}", "Effect": "Allow", **who}
            for one in statements
        ],
    }


def _locking(
    role: str, place: Place, lock: Lock, below: dict[str, Any], *, conditional: bool
) -> list[dict[str, Any]]:
    """Return what a role needs beyond its rights where objects are locked; nobody may take a lock away."""
    rights = ROLES[role]
    locked = [key for key in rights.put if lock.covers(key)]
    if role == COLLECTOR:
        locked = sorted({*locked, *EXTENDED})
    if not locked:
        return []
    # Otherwise somebody who took over could lock for a hundred years what then must be paid for.
    most = lock.until(_BEGINNING) - _BEGINNING
    limit = {"NumericLessThanEquals": {"s3:object-lock-remaining-retention-days": str(most.days + 1)}}
    found: list[dict[str, Any]] = [
        {
            "Sid": "Lock",
            "Action": "s3:PutObjectRetention",
            "Resource": [*map(place.arn, locked)],
            **({"Condition": limit} if conditional else {}),
        }
    ]
    if role == COLLECTOR:
        deleted = [*map(place.arn, rights.delete)]
        found += [
            {"Sid": "ReadLocks", "Action": "s3:GetObjectRetention", "Resource": [*map(place.arn, locked)]},
            {"Sid": "ListVersions", "Action": "s3:ListBucketVersions", "Resource": place.arn(), **below},
            {"Sid": "DeleteVersions", "Action": "s3:DeleteObjectVersion", "Resource": deleted},
        ]
    return found


def _partition(region: str | None) -> str:
    """Return the part of AWS that a region is in."""
    for beginning, partition in (("cn-", "aws-cn"), ("us-gov-", "aws-us-gov")):
        if region is not None and region.startswith(beginning):
            return partition
    return "aws"
