"""A secret that opens a repository, from where the operator has it; never from the command line itself."""

from __future__ import annotations

import getpass
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkeep.errors import InputError
from vmkeep.repository import Secret, read_key_file, read_key_variable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmkeep.repository import Opener


@dataclass(frozen=True, slots=True)
class Given:
    """What options name."""

    key_file: Path | None = None
    variable: str | None = None
    """The name of an environment variable."""
    kms: str | None = None
    """A key of AWS KMS: its ARN, or an alias."""

    def secret(self, kms_key: Callable[[str], Opener]) -> Opener | None:
        """Return what opens the repository; `None`: nothing is named.

        Args:
            kms_key: opens a key of AWS KMS.

        Raises:
            InputError: two are named.
            AccessError: it cannot be read.
        """
        if sum(one is not None for one in (self.key_file, self.variable, self.kms)) > 1:
            raise InputError("say only one of --key-file, --passphrase-env and --kms")
        if self.key_file is not None:
            return read_key_file(self.key_file)
        if self.kms is not None:
            return kms_key(self.kms)
        return None if self.variable is None else read_key_variable(self.variable)


def ask(prompt: str, *, again: bool = False) -> Secret:
    """Return the passphrase that a person types, unseen.

    Args:
        again: it is new: have it typed twice.

    Raises:
        InputError: there is nobody to ask, it is empty, or the second differs.
    """
    if not sys.stdin.isatty():
        raise InputError(
            "no key was given, and there is no terminal to ask: --key-file or --passphrase-env, or --kms"
        )
    text = getpass.getpass(f"{prompt}: ")
    if again and getpass.getpass("The same again: ") != text:
        raise InputError("the two passphrases differ")
    return Secret.passphrase(text)
