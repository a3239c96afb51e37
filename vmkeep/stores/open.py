"""Open a store by its URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmkeep.errors import InputError
from vmkeep.stores.directory import DirectoryStore

if TYPE_CHECKING:
    from vmkeep.stores.base import Store
    from vmkeep.stores.lock import Lock
    from vmkeep.stores.pace import Pace


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach an S3 service; what is `None` comes from boto3's own chain."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    ca_bundle: Path | None = None
    lock: Lock | None = None
    """How objects are locked; the bucket must have object lock."""

    def __repr__(self) -> str:
        """Leave the credentials out: this may end up in a log."""
        return f"S3Options(endpoint_url={self.endpoint_url!r}, region={self.region!r})"


def open_store(
    url: str, *, s3: S3Options | None = None, base: Path | None = None, pace: Pace | None = None
) -> Store:
    """Open the store at *url*: `s3://bucket/prefix`, or a path relative to *base*.

    Args:
        pace: how fast objects are written to it; by default as fast as it goes.

    Raises:
        InputError: the URL is of no known kind.
        AccessError: the directory cannot be used.
    """
    if url.startswith("s3://"):
        from vmkeep.stores.s3 import S3Store  # noqa: PLC0415  (boto3 takes 0.3 s to import)

        return S3Store(url, s3 or S3Options(), pace=pace)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):
        raise InputError(f"{url!r} is no store that vmkeep knows: write s3://bucket/prefix, or a path")
    return DirectoryStore((base or Path()) / Path(url).expanduser(), pace=pace)
