"""The health gates of a VM that was started: its dependents wait until all are open.

Gates are tried in the order in which they are declared, each again and again until it opens or its own time
is over.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkeep.components import gate_kinds
from vmkeep.errors import InputError, SourceError, TemporaryError, VmkeepError
from vmkeep.fleet.model import HealthCheck

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.components.subject import Subject

_ATTEMPT_S: Final = 15.0
"""How long one try may take."""
_PAUSE_S: Final = (0.25, 5.0)
"""The first and the longest pause between two tries."""
_ALIVE: Final = HealthCheck(agent=True)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@dataclass(frozen=True, slots=True)
class Clock:
    """The time that goes by between tries."""

    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], bool] = _sleep
    """Waits so many seconds; returns true, and at once, when nobody wants to know any more."""


def pass_gates(subject: Subject, clock: Clock | None = None) -> tuple[str, ...]:
    """Try the gates of a VM in order; return what was found, one sentence each.

    A VM that declares a way into it and no gate has one: its inside answers.

    Raises:
        SourceError: a gate did not open in time; carries why the last try failed.
        UnsupportedError: a gate cannot be tried at all.
        TemporaryError: nobody wants to know any more.
    """
    checks = subject.vm.health or ((_ALIVE,) if subject.vm.guest is not None else ())
    return tuple(_open(subject, check, clock or Clock()) for check in checks)


def _open(subject: Subject, check: HealthCheck, clock: Clock) -> str:
    began = clock.now()
    deadline = began + check.timeout
    pause, tries = _PAUSE_S[0], 0
    while True:
        tries += 1
        left = deadline - clock.now()
        try:
            found = gate_kinds.attempt(subject, check, timeout_s=min(_ATTEMPT_S, max(left, 1.0)))
        except InputError:
            raise
        except VmkeepError as error:
            reason = error
        else:
            return f"{found} (after {clock.now() - began:.1f} s)"
        if clock.now() + pause >= deadline:
            raise SourceError(
                f"VM {subject.name}: health check {gate_kinds.called(check)} did not pass within "
                f"{check.timeout:.0f} s ({tries} tries): {reason}"
            ) from reason
        if clock.wait(pause):
            raise TemporaryError(f"VM {subject.name}: its health was not waited for: {reason}") from reason
        pause = min(pause * 1.5, _PAUSE_S[1])
