"""`vmkeep plan`: what would run, without a repository too."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from vmkeep.cli.console import out, print_json, warn
from vmkeep.cli.fleet_file import load
from vmkeep.errors import NotFoundError, VmkeepError
from vmkeep.operations import prepare, repositories, support
from vmkeep.operations.choose import choose_points
from vmkeep.operations.placed import placed
from vmkeep.operations.windows import too_late
from vmkeep.planning import (
    Verb,
    plan_backup,
    plan_configure,
    plan_copy,
    plan_drill,
    plan_prune,
    plan_restore,
    plan_verify,
    predicted_limits,
    simulate,
)
from vmkeep.reports.tables import plan_rows, plan_text
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmkeep.fleet import FleetFile, Selection
    from vmkeep.operations.request import Request
    from vmkeep.planning import Facts, Plan
    from vmkeep.repository import Repository


@dataclass(frozen=True, slots=True)
class Preview:
    """A plan, and what it is founded on."""

    plan: Plan
    facts: Facts
    points: Mapping[str, str]
    """The recovery points that a restore would use, by VM."""
    notes: tuple[str, ...]
    """What a person should know about it."""

    @property
    def size(self) -> int:
        """Bytes that would be read from VMs, or written into them."""
        verbs = (
            {Verb.BACKUP, Verb.RESTORE, Verb.STREAM, Verb.VERIFY, Verb.COPY}
            if self.plan.operation != "backup"
            else {Verb.BACKUP}
        )
        return sum(step.estimate.size for step in self.plan.steps.values() if step.verb in verbs)

    @property
    def new(self) -> int:
        """Bytes that a backup would probably add to the repository, before compression."""
        return sum(
            self.facts.new.get(f"{step.vms[0]}/{step.component}", step.estimate.size)
            for step in self.plan.steps.values()
            if step.verb is Verb.BACKUP
        )


def plan(request: Request, *, as_json: bool) -> None:
    """Print what *request* would do.

    Raises:
        FleetError: the fleet file has problems.
        InputError: a target is unknown.
    """
    file = load(request.fleet)
    request = placed(file, request)
    file = file.on(request.placed)
    shown = preview(file, request)
    schedule = simulate(shown.plan, predicted_limits(file.fleet))
    late = too_late(file.fleet, schedule) if request.operation == "backup" else None
    notes = [*shown.notes, *([late] if late is not None else [])]
    if as_json:
        print_json(
            {
                "operation": request.operation,
                "fleet": file.fleet.fleet,
                "seconds": schedule.makespan,
                "seconds_at_least": schedule.lower_bound,
                "critical_path": [step.id for step in schedule.critical_path],
                "size": shown.size,
                "new": shown.new,
                "points": dict(shown.points),
                "hypervisors": dict(request.placed),
                "notes": notes,
                "steps": [asdict(row) for row in plan_rows(shown.plan, schedule)],
            }
        )
        return
    out().print(plan_text(shown.plan, schedule).rstrip("\n"), markup=False)
    for line in [*_places(request), *_sizes(shown)]:
        out().print(line, markup=False)
    for note in notes:
        warn(note)


def _places(request: Request) -> Iterator[str]:
    """Yield which VMs would go where, if the restore may choose."""
    for hypervisor in dict.fromkeys(request.placed.values()):
        names = [name for name, there in request.placed.items() if there == hypervisor]
        yield f"to {hypervisor}: {', '.join(names)}"


def preview(file: FleetFile, request: Request) -> Preview:
    """Plan *request* with what is at hand; what is missing is noted, not refused."""
    selection = prepare.selected(file, request)
    notes = [f"not supported: {sentence}" for sentence in support.unsupported(file, selection.vms)]
    try:
        with repositories.open_repository(file) as repository:
            whole = request.operation in {"restore", "drill", "verify"}
            facts = prepare.facts(file, selection, repository, whole=whole)
            points = _points(file, selection, repository, request, notes)
    except VmkeepError as error:
        notes.append(f"sizes are those of the disks: {error}")
        facts, points = prepare.facts(file, selection, None), {}
    return Preview(_plan(file, request, selection, facts), facts, points, tuple(notes))


def _points(
    file: FleetFile, selection: Selection, repository: Repository, request: Request, notes: list[str]
) -> dict[str, str]:
    if request.operation not in {"restore", "drill"}:
        return {}
    try:
        return choose_points(file.fleet, selection, repository, request)
    except NotFoundError as error:
        notes.append(str(error))
        return {}


def _plan(file: FleetFile, request: Request, selection: Selection, facts: Facts) -> Plan:
    match request.operation:
        case "configure":
            return plan_configure(file.fleet, selection, facts)
        case "backup":
            return plan_backup(file.fleet, selection, facts)
        case "restore" | "drill":
            if request.operation == "drill":
                planned = plan_drill(file.fleet, selection, facts)
            else:
                planned = plan_restore(file.fleet, selection, facts, instant=request.instant)
            return planned
        case "verify":
            return plan_verify(file.fleet, selection, facts, share=request.share)
        case "copy":
            return plan_copy(file.fleet, selection, facts, to=request.copies or None)
        case "prune":
            return plan_prune(file.fleet, selection.vms, facts)


def _sizes(shown: Preview) -> list[str]:
    if shown.plan.operation == "configure":
        return []
    if shown.plan.operation == "backup":
        known = "as last time" if shown.facts.new else "all is new to the repository"
        return [f"reads about {format_size(shown.size)}, about {format_size(shown.new)} of it new ({known})"]
    if shown.plan.operation == "copy":
        return ["what the copies lack is known when they are read; the sizes are those of the last backup"]
    verb = "writes" if shown.plan.operation in {"restore", "drill"} else "reads back"
    chosen = [f"{vm} from recovery point {session}" for vm, session in shown.points.items()]
    return [*chosen, f"{verb} about {format_size(shown.size)}"]
