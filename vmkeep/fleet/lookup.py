"""Secrets that a fleet file refers to, looked up where they lie."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from vmkeep.errors import AccessError, InputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmkeep.fleet.model import KeyReference

resolvers: Final[dict[str, Callable[[str], str]]] = {}
"""How references that need another program are looked up, by their key in the fleet file.

The library knows no Prefect: `flows` adds `prefect_secret` here.
"""


def text_of(reference: KeyReference, base: Path) -> str:
    """Return the text that a reference stands for, without white space around it.

    Args:
        base: The folder of the fleet file, from which relative paths start.

    Raises:
        InputError: there is no such thing, or it is empty.
        AccessError: the environment variable is not set.
        UnsupportedError: this kind of reference cannot be looked up here.
    """
    if reference.file is not None:
        path = (base / reference.file.expanduser()).resolve()
        try:
            return _not_empty(path.read_text(), str(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
    if reference.env is not None:
        text = os.environ.get(reference.env)
        if text is None:
            raise AccessError(f"the environment variable {reference.env}, which holds a secret, is not set")
        return _not_empty(text, f"the environment variable {reference.env}")
    (kind,) = reference.model_fields_set
    if kind not in resolvers:
        what = "needs Prefect: run it without --direct" if kind == "prefect_secret" else "is not supported"
        raise UnsupportedError(f"a reference by {kind} {what}; use file or env")
    return resolvers[kind](str(getattr(reference, kind)))


def login_of(reference: KeyReference, base: Path, *, what: str) -> tuple[str, str]:
    """Return what a reference to a login stands for: what stands before the first colon, and what behind it.

    Args:
        what: The key of the fleet file and its form, such as ``… must read USER:PASSWORD``, for errors.

    Raises:
        InputError: it is no login, or not there; never says what it is.
    """
    user, _, password = text_of(reference, base).strip().partition(":")
    if not (user and password):
        raise InputError(what)
    return user, password


def _not_empty(text: str, where: str) -> str:
    if not text.strip():
        raise InputError(f"{where} is empty")
    return text.strip()
