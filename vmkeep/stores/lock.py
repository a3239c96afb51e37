"""Object Lock: objects that nobody can destroy before a time. See: Amazon S3 User Guide, "Object Lock"."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Lock:
    """How objects are locked when they are put, and again before the lock ends."""

    mode: Literal["GOVERNANCE", "COMPLIANCE"]
    days: int
    """For how many days at least what is needed is locked whenever locks were extended."""
    unlocked: tuple[str, ...] = ()
    """Beginnings of keys that are never locked: what is deleted within the day."""

    def covers(self, key: str) -> bool:
        """Tell whether an object is locked when it is put."""
        return not key.startswith(self.unlocked)

    def until(self, now: datetime) -> datetime:
        """Return until when a new lock lasts: longer than promised, so that not every day extends all."""
        spare = max(1, self.days // 4)
        return (now + timedelta(days=self.days + spare)).replace(microsecond=0)

    def is_due(self, until: datetime | None, now: datetime) -> bool:
        """Tell whether a lock that lasts *until* must be extended now."""
        return until is None or until < now + timedelta(days=self.days)


@runtime_checkable
class LockingStore(Protocol):
    """A store that locks objects. A deletion in it is refused with `AccessError` while one is locked."""

    @property
    def lock(self) -> Lock | None:
        """How it locks; `None`: not at all."""

    def locked_until(self, key: str) -> datetime | None:
        """Return until when an object is locked; `None`: it is not.

        Raises:
            NotFoundError: there is no such object.
        """

    def extend_lock(self, key: str, until: datetime) -> None:
        """Lock an object until then.

        Raises:
            AccessError: it is locked for longer, or in another mode, or the credentials do not allow it.
            NotFoundError: there is no such object.
        """
