"""How stores and their objects are named: keys are safe as paths, in URLs and in listings."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from vmkeep.errors import InputError

_KEY: Final = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_LONGEST: Final = 512


def check_key(key: str) -> str:
    """Return *key* when it is safe everywhere.

    Raises:
        InputError: it has other characters, an empty part, or a part that starts with a dot.
    """
    if _KEY.fullmatch(key) is None or len(key) > _LONGEST or key.startswith(".") or "/." in key:
        raise InputError(
            f"{key!r} is not an object key: expected letters, digits and '-_.' in parts divided by '/', "
            f"none of which starts with a dot, and {_LONGEST} characters at most"
        )
    return key


def split_s3_url(url: str) -> tuple[str, str]:
    """Return the bucket of `s3://bucket/prefix`, and the prefix of its keys: empty, or with `/` at its end.

    Raises:
        InputError: it names no bucket.
    """
    parts = urlsplit(url)
    if not parts.netloc or "@" in parts.netloc or parts.query:
        raise InputError(f"{url!r} is not an S3 store: write s3://bucket or s3://bucket/prefix")
    prefix = parts.path.strip("/")
    return parts.netloc, f"{prefix}/" if prefix else ""
