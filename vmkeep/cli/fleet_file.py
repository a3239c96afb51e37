"""Reads the fleet file for a command, with Prefect at hand where its secrets lie there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep import fleet as fleets

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.fleet import FleetFile


def load(path: Path) -> FleetFile:
    """Read and check a fleet file.

    Raises:
        FleetError: it has problems; all of them are told.
        TemporaryError: a secret lies on a Prefect server that is away.
    """
    file = fleets.load(path)
    config = file.fleet.repository
    references = [config.key, *([config.s3.credentials] if config.s3 and config.s3.credentials else [])]
    if any(reference.prefect_secret is not None for reference in references):
        from flows import settings  # noqa: PLC0415  (Prefect takes seconds, and few fleets need it here)

        settings.require_server()
        from flows import secrets  # noqa: PLC0415  (reads the settings when it is imported)

        secrets.register()
    return file
