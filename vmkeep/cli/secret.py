"""A secret that opens a repository, from where the operator has it; never from the command line itself."""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING

from vmkeep.errors import InputError
from vmkeep.repository import Secret, read_key_file, read_key_variable

if TYPE_CHECKING:
    from pathlib import Path


def given(key_file: Path | None, variable: str | None) -> Secret | None:
    """Return the secret that options name; `None`: they name none.

    Raises:
        InputError: they name two.
        AccessError: it cannot be read.
    """
    if key_file is not None and variable is not None:
        raise InputError("say either --key-file or --passphrase-env")
    if key_file is not None:
        return read_key_file(key_file)
    return None if variable is None else read_key_variable(variable)


def ask(prompt: str, *, again: bool = False) -> Secret:
    """Return the passphrase that a person types, unseen.

    Args:
        again: it is new: have it typed twice.

    Raises:
        InputError: there is nobody to ask, it is empty, or the second differs.
    """
    if not sys.stdin.isatty():
        raise InputError("no key was given, and there is no terminal to ask: --key-file or --passphrase-env")
    text = getpass.getpass(f"{prompt}: ")
    if again and getpass.getpass("The same again: ") != text:
        raise InputError("the two passphrases differ")
    return Secret.passphrase(text)
