"""`vmkeep hold`, `unhold` and `forget`: one recovery point stays, or goes, whatever retention says."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from vmkeep.cli.console import local_time, out, print_json
from vmkeep.cli.fleet_file import load
from vmkeep.operations import holds as operation
from vmkeep.operations import repositories

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path


def hold(  # noqa: PLR0913  (each is an option)
    path: Path,
    place: str | None,
    vm: str,
    session: str,
    *,
    name: str,
    reason: str,
    until: datetime | None,
    as_json: bool,
) -> None:
    """Hold a recovery point.

    Args:
        place: the copy of the repository.
        until: local time unless it has a zone.
    """
    until = None if until is None else until.astimezone()
    with repositories.open_repository(load(path, place)) as repository:
        made = repository.hold(repository.point(vm, session), name=name, reason=reason, until=until)
    if as_json:
        print_json(asdict(made))
        return
    end = f" until {local_time(made.until)}" if made.until else ""
    out().print(f"recovery point {made.session} of {vm} is held as {name!r}{end}", markup=False)


def unhold(  # noqa: PLR0913  (each is an option)
    path: Path, place: str | None, vm: str, session: str, *, name: str, reason: str
) -> None:
    """Release a hold."""
    with repositories.open_repository(load(path, place)) as repository:
        released = operation.unhold(repository, repository.point(vm, session), name, reason)
    out().print(f"recovery point {released.session} of {vm} is not held as {name!r} any more", markup=False)


def forget(path: Path, place: str | None, vm: str, session: str, *, reason: str) -> None:
    """Forget one recovery point."""
    with repositories.open_repository(load(path, place)) as repository:
        gone = operation.forget(repository, vm, session, reason)
    out().print(
        f"recovery point {gone.session} of {vm} is forgotten; 'vmkeep prune' frees its space", markup=False
    )
