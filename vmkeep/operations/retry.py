"""Which failures are worth another try, and when: the same rule for both engines."""

from __future__ import annotations

from typing import Final

from vmkeep.errors import TemporaryError
from vmkeep.planning.step import Verb

DELAYS_S: Final = (1.0, 5.0, 30.0)
"""Pauses before the second, third and fourth try; each is lengthened by up to half at random."""

# Creating, freezing and sealing talk to one place and are cheap to repeat; reading and writing disks
# repeat on their own below. A step that is not listed is tried once.
_RETRIED: Final = frozenset(
    {Verb.CONFIGURE, Verb.SNAPSHOT, Verb.BACKUP, Verb.UPLOAD, Verb.RELEASE, Verb.SEAL, Verb.PLACE}
    | {Verb.RESTORE, Verb.SERVE, Verb.STREAM, Verb.VERIFY, Verb.COPY, Verb.PRUNE, Verb.ISOLATE, Verb.REMOVE}
)


def is_temporary(error: BaseException | None) -> bool:
    """Tell whether the same call may succeed later: never for bad input or damaged data."""
    return isinstance(error, TemporaryError)


def attempts(verb: Verb) -> int:
    """Return how often a step of *verb* is tried in all."""
    return 1 + len(DELAYS_S) if verb in _RETRIED else 1
