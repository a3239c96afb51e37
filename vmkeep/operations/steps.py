"""The bodies of all steps, by verb: the same ones under Prefect and without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkeep.operations import backup, configure, copy, drill, instant, prune, restore, verify
from vmkeep.planning import Verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.operations.report import StepReport
    from vmkeep.operations.run import Run
    from vmkeep.planning import Step

    Body = Callable[[Run, Step, Callable[[int], None]], StepReport]

_BACKUP: Final[dict[Verb, Body]] = {
    Verb.CONFIGURE: configure.check,
    Verb.SNAPSHOT: backup.snapshot,
    Verb.BACKUP: backup.save,
    Verb.UPLOAD: backup.upload,
    Verb.RELEASE: backup.release,
    Verb.SEAL: backup.seal,
    Verb.VERIFY: verify.verify_new,
}
_RESTORE: Final[dict[Verb, Body]] = {
    Verb.PLACE: restore.place,
    Verb.CONFIGURE: restore.create,
    Verb.RESTORE: restore.write,
    Verb.SERVE: instant.serve,
    Verb.START: restore.start,
    Verb.HEALTH: restore.health,
    Verb.STREAM: instant.stream,
    Verb.RELEASE: restore.release,
}
_DRILL: Final[dict[Verb, Body]] = {
    Verb.ISOLATE: drill.isolate,
    Verb.PLACE: drill.place,
    Verb.CONFIGURE: drill.create,
    Verb.RESTORE: restore.write,
    Verb.SERVE: instant.serve,
    Verb.START: restore.start,
    Verb.HEALTH: drill.health,
    Verb.REMOVE: drill.remove,
}
_BODIES: Final[dict[str, dict[Verb, Body]]] = {
    "backup": _BACKUP,
    "restore": _RESTORE,
    "drill": _DRILL,
    "configure": {Verb.CONFIGURE: configure.apply},
    "verify": {Verb.VERIFY: verify.verify_chosen},
    "copy": {Verb.COPY: copy.copy},
    "prune": {Verb.PRUNE: prune.prune},
}


def perform(run: Run, step_id: str, progress: Callable[[int], None]) -> StepReport:
    """Carry out one step of *run*; may be called again after a failure.

    Args:
        progress: is told the bytes that were done since its last call, from any thread.
    """
    step: Step = run.plan.steps[step_id]
    return _BODIES[run.plan.operation][step.verb](run, step, progress)


def describe(verb: Verb) -> str:
    """Return what steps of *verb* do, one line for each operation that has them."""
    docs = {operation: bodies[verb].__doc__ or "" for operation, bodies in _BODIES.items() if verb in bodies}
    return "\n\n".join(f"{operation}: {doc.splitlines()[0]}" for operation, doc in docs.items())
