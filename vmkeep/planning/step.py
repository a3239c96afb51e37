"""One retryable unit of work, as pure data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verb(StrEnum):
    """What a step does; one task in `tasks/` for each."""

    CONFIGURE = "configure"
    SNAPSHOT = "snapshot"
    BACKUP = "backup"
    UPLOAD = "upload"
    RELEASE = "release"
    SEAL = "seal"
    PLACE = "place"
    RESTORE = "restore"
    SERVE = "serve"
    START = "start"
    HEALTH = "health"
    STREAM = "stream"
    VERIFY = "verify"
    COPY = "copy"
    PRUNE = "prune"
    ISOLATE = "isolate"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a step is expected to cost."""

    seconds: float = 1.0
    size: int = 0
    """Bytes read or written."""


@dataclass(frozen=True, slots=True)
class Step:
    """A node of a plan; its id is also how people and Prefect call it: `backup db1/databases.orders`.

    `needs` are steps that must have succeeded, `after` those that must only be over: their failure
    does not skip this one. An `always` step runs whatever happened before it, once all of both are
    over: it thaws, releases, seals what there is.
    """

    id: str
    verb: Verb
    vms: tuple[str, ...]
    """The VMs it touches: one, or all of a consistency group for `snapshot` and `release`."""
    component: str | None = None
    """`os`, or `kind.name` such as `databases.orders`."""
    group: str | None = None
    needs: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    resources: tuple[str, ...] = ()
    """Resource tokens held while it runs, one of each name."""
    estimate: Estimate = Estimate()
    always: bool = False
    repository: str | None = None
    """The copy of the repository that it writes to."""
