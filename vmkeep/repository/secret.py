"""What opens a repository: a passphrase, the bytes of a key file, or a service that keeps a key."""

from __future__ import annotations

import os
import secrets
import shlex
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from vmkeep.errors import AccessError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PREFIX: Final = "vmkeep-key-1:"
_LEAST: Final = 32


@dataclass(frozen=True, slots=True)
class Secret:
    """Bytes that only the owner of the repository knows."""

    data: bytes = field(repr=False)
    strong: bool
    """Random bytes of a key file; a passphrase is not, and so is stretched with scrypt."""

    @classmethod
    def passphrase(cls, text: str) -> Secret:
        """Return the secret that a person remembers.

        Raises:
            InputError: it is empty.
        """
        if not text.strip():
            raise InputError("the passphrase of the repository is empty")
        return cls(text.encode(), strong=False)

    @classmethod
    def key(cls, data: bytes) -> Secret:
        """Return the secret in a key file: 32 random bytes or more.

        Raises:
            InputError: it is shorter.
        """
        if len(data) < _LEAST:
            raise InputError(f"a key has {_LEAST} random bytes or more; this one has {len(data)}")
        return cls(data, strong=True)


class KeyService(Protocol):
    """A service that keeps a key to itself, and wraps data keys with it."""

    def new_key(self, repository: bytes) -> tuple[bytes, bytes, str]:
        """Make a data key that only opens what belongs to this repository (its id, 16 bytes).

        Returns:
            The data key (32 bytes), the same wrapped, and the full name of the service's key.
        """

    def open_key(self, wrapped: bytes, repository: bytes) -> bytes:
        """Unwrap a data key.

        Raises:
            AccessError: another key wrapped it, or for another repository; or the service refuses.
        """


Opener: TypeAlias = Secret | KeyService
"""What a key slot opens with."""


def read_key_file(path: Path) -> Secret:
    """Return the secret in a file: a key made by `generate_key_file`, or else a passphrase.

    Raises:
        AccessError: it cannot be read, or other users can read it.
        InputError: it is empty.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except OSError as error:
        raise AccessError(f"cannot read the key file {path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise AccessError(
            f"the key file {path} has mode {stat.S_IMODE(mode):04o}: other users can use it; "
            f"run: chmod 600 {shlex.quote(str(path))} (and think about who may have read it)"
        )
    try:
        return parse_secret(data.decode())
    except UnicodeDecodeError:
        return Secret.key(data)


def read_key_variable(name: str, environment: Mapping[str, str] = os.environ) -> Secret:
    """Return the secret in an environment variable.

    Raises:
        AccessError: the variable is not set.
        InputError: it is empty.
    """
    text = environment.get(name)
    if text is None:
        raise AccessError(f"the environment variable {name}, which holds the repository's key, is not set")
    return parse_secret(text)


def generate_key_file(path: Path) -> Secret:
    """Write a new random key to *path*, for its owner only, and return it.

    Raises:
        InputError: the file exists; a key is never overwritten.
        AccessError: it cannot be written.
    """
    text = _PREFIX + secrets.token_hex(_LEAST) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise InputError(f"the key file {path} exists; a key is never overwritten") from None
    except OSError as error:
        raise AccessError(f"cannot write the key file {path}: {error.strerror}") from error
    return parse_secret(text)


def parse_secret(text: str) -> Secret:
    """Return the secret in a text: a key made by `generate_key_file`, or else a passphrase.

    Raises:
        InputError: it is empty, or a damaged key.
    """
    line = text.strip("\r\n")
    if not line.startswith(_PREFIX):
        return Secret.passphrase(line)
    try:
        return Secret.key(bytes.fromhex(line.removeprefix(_PREFIX)))
    except ValueError:
        raise InputError(f"the key is damaged: expected hexadecimal digits after {_PREFIX!r}") from None
