"""The S3 policy of a role: exactly what the role does, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmkeep.repository.roles import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterable


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


def policy(
    role: str, place: Place, *, principals: Iterable[str] = (), conditional: bool = True
) -> dict[str, Any]:
    """Return the policy of *role*, one of `ROLES`: for a user, or for the bucket if *principals* are named.

    Args:
        principals: the ARNs of those who get the role.
        conditional: only allow puts of objects that do not exist. See: Amazon S3 User Guide, "Enforce
            conditional writes on Amazon S3 buckets". Services that do not know the condition deny every put.
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
    who = {"Principal": {"AWS": sorted(principals)}} if principals else {}
    return {
        "Version": "2012-10-17",
        "Statement": [
            {**one, "Sid": f"Vmkeep{role.title()}{one['Sid']}", "Effect": "Allow", **who}
            for one in statements
        ],
    }


def _partition(region: str | None) -> str:
    """Return the part of AWS that a region is in."""
    for beginning, partition in (("cn-", "aws-cn"), ("us-gov-", "aws-us-gov")):
        if region is not None and region.startswith(beginning):
            return partition
    return "aws"
