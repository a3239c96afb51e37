"""`vmkeep verify`: which share to read back, and the check that reads nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from vmkeep.cli.console import out, print_json
from vmkeep.cli.fleet_file import load
from vmkeep.errors import InputError, IntegrityError
from vmkeep.operations import repositories
from vmkeep.operations.request import Request, parse_pairs

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.repository import PackFault, QuickReport


def request_of(fleet: Path, targets: tuple[str, ...], points: tuple[str, ...], share: str) -> Request:
    """Return the request to read back *share* (such as `5%`).

    Raises:
        InputError: the share is not between 0 and 100 percent.
    """
    return Request(
        operation="verify",
        fleet=fleet,
        targets=targets,
        points=parse_pairs(list(points), option="--point"),
        share=_share(share),
    )


def require_nothing_else(*, named: bool, packs: bool) -> None:
    """Refuse what `--quick` would not look at.

    Raises:
        InputError: something of it was said.
    """
    if named:
        raise InputError("--quick looks at all packs, whoever's they are: name no VM and no recovery point")
    if packs:
        raise InputError("say either --quick, which reads nothing, or --packs, which reads all of it")


def quick(fleet: Path, place: str | None, share: str, *, as_json: bool) -> None:
    """Check that every pack is there, as long as it should be, and has its checksum if the store knows it.

    Args:
        place: the copy of the repository to look into.
        share: of how much the checksums are compared (such as `5%`): what was not for the longest time.

    Raises:
        IntegrityError: one is not.
    """
    with repositories.open_repository(load(fleet, place)) as repository:
        report = repository.check_packs(share=_share(share))
        packs, faults = report.of, report.faults
        url = repository.store.url
    if as_json:
        print_json({"store": url, **asdict(report), "oldest": report.oldest and report.oldest.isoformat()})
    if faults:
        raise IntegrityError(
            f"{len(faults)} of {packs} packs in {url} are damaged; 'vmkeep verify' says what each concerns:\n"
            + "\n".join(map(_told, faults))
        )
    if not as_json:
        out().print(
            f"{packs} packs in {url}: all are there and have their size; {_compared(report)}", markup=False
        )


def _compared(report: QuickReport) -> str:
    since = f"; all were compared since {report.oldest:%Y-%m-%d}" if report.oldest else ""
    if report.checksums == report.of:
        return "the store has the checksum of each"
    return (
        f"the store tells the checksum of {report.checksums}, of the rest only the size was compared{since}"
    )


def _told(fault: PackFault) -> str:
    if fault.found == fault.expected:
        return f"  {fault.pack} has another checksum than what was put there"
    found = "is missing" if fault.found is None else f"has {fault.found} bytes"
    return f"  {fault.pack} {found}, expected {fault.expected}"


def _share(text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = 0.0
    if not (text.strip().endswith("%") and 0 < share <= 1):
        raise InputError(f"--share {text!r}: write a percentage above 0 and up to 100, for example 5%")
    return share
