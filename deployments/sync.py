"""Makes a fleet's deployments on a Prefect server what its fleet file says: created, updated, removed.

An unchanged deployment is not touched: its tags carry a hash of what it was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import DeploymentSort
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.utilities.callables import parameter_schema

import flows
from deployments import POOL
from flows.generate import DESCRIPTIONS, generate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

    from vmkeep.fleet import FleetFile
    from vmkeep.fleet.model import Schedule
    from vmkeep.operations.request import Operation

_MANAGED: Final = "managed-by:vmkeep"
_PAGE: Final = 200
_OPERATIONS: Final[tuple[Operation, ...]] = (
    "configure",
    "backup",
    "restore",
    "drill",
    "verify",
    "copy",
    "prune",
)
_ROOT: Final = Path(flows.__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Deployed:
    """What became of one deployment."""

    name: str
    """`flow/deployment`, as `prefect deployment run` takes it."""
    change: str
    """`created`, `updated`, `unchanged` or `removed`."""
    schedule: str = ""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One deployment as it should be."""

    flow: str
    operation: Operation
    schedule: Schedule | None
    parameters: dict[str, Any]
    schema: dict[str, Any]
    pool: str

    @property
    def digest(self) -> str:
        """Changes when anything about it does."""
        schedule = self.schedule.model_dump(mode="json") if self.schedule else None
        content = [self.flow, self.operation, schedule, self.parameters, self.schema, self.pool, str(_ROOT)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def deploy(file: FleetFile, *, pool: str = POOL) -> list[Deployed]:
    """Bring the server's deployments of this fleet in line with the fleet file.

    Args:
        pool: the work pool; a process pool is made when there is none of that name.

    Returns:
        What was done, in the order of names; those of other fleets are not touched.
    """
    mine = f"fleet:{file.fleet.fleet}"
    with get_client(sync_client=True) as client:
        _make_pool(client, pool)
        there = {one.name: one for one in _deployments(client, [_MANAGED, mine])}
        done = [_put(client, wanted, there.pop(wanted.flow, None), mine) for wanted in _wanted(file, pool)]
        for name, stale in there.items():
            client.delete_deployment(stale.id)
            done.append(Deployed(f"{name}/{name}", "removed"))
    return sorted(done, key=lambda one: one.name)


def _wanted(file: FleetFile, pool: str) -> Iterator[_Wanted]:
    for operation in _OPERATIONS:
        if operation == "copy" and not file.fleet.repository.copies:
            continue
        flow = generate(file, operation)
        schedule = file.fleet.schedules.declared().get(operation)
        parameters: dict[str, Any] = {"fleet": str(file.path.absolute())}
        if operation == "verify" and schedule is not None and schedule.sample is not None:
            # Night by night all of it is read: what was not read for the longest time comes first.
            parameters |= {"percent": schedule.sample * 100, "packs": True}
        schema = parameter_schema(flow).model_dump_for_openapi()
        yield _Wanted(flow.name, operation, schedule, parameters, schema, pool)


def _put(client: SyncPrefectClient, wanted: _Wanted, there: DeploymentResponse | None, mine: str) -> Deployed:
    name = f"{wanted.flow}/{wanted.flow}"
    cron = f"{wanted.schedule.cron} {wanted.schedule.timezone}" if wanted.schedule else ""
    digest = f"made-from:{wanted.digest}"
    if there is not None and digest in (there.tags or []):
        return Deployed(name, "unchanged", cron)
    schedules = [
        DeploymentScheduleCreate(
            schedule=CronSchedule(cron=wanted.schedule.cron, timezone=wanted.schedule.timezone),
            active=True,
            slug=wanted.operation,
        )
        for _ in [0]
        if wanted.schedule
    ]
    client.create_deployment(
        flow_id=_flow(client, wanted.flow),
        name=wanted.flow,
        description=DESCRIPTIONS[wanted.operation],
        entrypoint=f"flows/{wanted.operation}.py:{wanted.operation}",
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(_ROOT)}}],
        schedules=schedules,
        parameters=wanted.parameters,
        parameter_openapi_schema=wanted.schema,
        enforce_parameter_schema=True,
        tags=[_MANAGED, mine, digest],
        work_pool_name=wanted.pool,
        # Two backups of one VM at once are safe, and a waste: the second waits.
        concurrency_limit=1,
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
    )
    return Deployed(name, "created" if there is None else "updated", cron)


def _flow(client: SyncPrefectClient, name: str) -> UUID:
    return client.create_flow_from_name(name)


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        with contextlib.suppress(ObjectAlreadyExists):  # a worker that starts makes its pool, too
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))


def _deployments(client: SyncPrefectClient, tags: list[str]) -> Iterator[DeploymentResponse]:
    chosen = DeploymentFilter(tags=DeploymentFilterTags(all_=tags))
    offset = 0
    while True:
        page = client.read_deployments(
            deployment_filter=chosen, limit=_PAGE, offset=offset, sort=DeploymentSort.NAME_ASC
        )
        yield from page
        if len(page) < _PAGE:
            return
        offset += _PAGE
