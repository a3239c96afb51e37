"""Reads the fleet file for a command, with Prefect at hand where its secrets lie there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep import fleet as fleets

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.fleet import FleetFile
    from vmkeep.fleet.model import Place


def load(path: Path, repository: str | None = None) -> FleetFile:
    """Read and check a fleet file.

    Args:
        repository: the copy that takes the place of the repository.

    Raises:
        InputError: there is no such copy.
        FleetError: it has problems; all of them are told.
        TemporaryError: a secret lies on a Prefect server that is away.
    """
    file = fleets.load(path)
    main = file.fleet.repository
    places: list[Place] = [main, *main.copies.values()]
    references = [place.key for place in places] + [place.s3.credentials for place in places if place.s3]
    references += [one.credentials for one in file.fleet.hypervisors.values() if one.driver == "vsphere"]
    if any(reference is not None and reference.prefect_secret is not None for reference in references):
        from flows import settings  # noqa: PLC0415  (Prefect takes seconds, and few fleets need it here)

        settings.require_server()
        from flows import secrets  # noqa: PLC0415  (reads the settings when it is imported)

        secrets.register()
    return file.at(repository)
