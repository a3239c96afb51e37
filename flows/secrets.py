"""Secrets that the fleet file keeps in Prefect blocks."""

from __future__ import annotations

from prefect.blocks.system import Secret

from vmkeep.errors import AccessError
from vmkeep.fleet.lookup import resolvers


def read_block(name: str) -> str:
    """Return the text in a Secret block.

    Raises:
        AccessError: there is no such block.
    """
    try:
        block = Secret.load(name)
    except ValueError as error:
        raise AccessError(
            f"there is no Secret block {name!r} on the Prefect server: make it under Blocks in the UI"
        ) from error
    return str(block.get())  # type: ignore[union-attr]  # a synchronous caller gets the block itself


def register() -> None:
    """Let the library look up `prefect_secret`."""
    resolvers["prefect_secret"] = read_block
