"""The recovery points of a repository: read once, and found by what a person types."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from vmkeep.errors import InputError, IntegrityError, NotFoundError
from vmkeep.repository.committed import list_points
from vmkeep.repository.decision import decode
from vmkeep.repository.manifest import Point
from vmkeep.repository.parallel import TRANSFERS, in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmkeep.repository.committed import PointInfo
    from vmkeep.repository.crypto import Keys
    from vmkeep.stores.base import Store

_TIME: Final = len("20260101T010000123Z-")
"""How much of a session's id is its time."""


class Points:
    """What was read of them is kept. Safe to use from several threads."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store, self._keys = store, keys
        self._read: dict[str, Point] = {}

    def all(self, vm: str | None, damaged: Callable[[PointInfo, IntegrityError], None] | None) -> list[Point]:
        """See `Repository.points`."""
        infos = list_points(self._store, vm)
        found = []
        for info, point in zip(infos, in_order(self._try, infos, threads=TRANSFERS), strict=True):
            if isinstance(point, Point):
                found.append(point)
            elif point is None:  # forgotten and removed since it was listed
                continue
            elif damaged is None:
                raise point
            else:
                damaged(info, point)
        return found

    def newest_first(self, vm: str) -> Iterator[Point]:
        """See `Repository.newest_first`."""
        for info in reversed(list_points(self._store, vm)):
            with contextlib.suppress(IntegrityError, NotFoundError):
                yield self.load(info, None)

    def load(self, info: PointInfo, body: bytes | None) -> Point:
        """See `Repository.load`."""
        point = self._read.get(info.key)
        if point is None:
            point = self._read[info.key] = self._decoded(info, body or self._store.get(info.key))
        return point

    def find(self, vm: str, session_id: str) -> PointInfo:
        """See `Repository.find`."""
        infos = list_points(self._store, vm)
        if session_id == "latest":
            infos = infos[-1:]
        else:
            found = [info for info in infos if info.session.startswith(session_id)]
            infos = found or [info for info in infos if self._copies(info, session_id)]
        if not infos:
            raise NotFoundError(f"{self._store.url} has no recovery point {session_id!r} of {vm}")
        if len(infos) > 1:
            names = ", ".join(info.session for info in infos[:5])
            raise InputError(
                f"{session_id!r} fits {len(infos)} recovery points of {vm}: {names}; write more of it"
            )
        return infos[0]

    def _decoded(self, info: PointInfo, body: bytes) -> Point:
        try:
            point = decode(self._keys, info.key, body).point
        except IntegrityError as error:
            raise _damaged(info, str(error)) from error
        if point is None:
            raise _damaged(info, f"{info.key} is damaged: it is void, but not of a void's size")
        return point

    def _copies(self, info: PointInfo, session_id: str) -> bool:
        """Tell whether it is a copy of that session, which has the same time."""
        alike = len(session_id) > _TIME and info.session[:_TIME] == session_id[:_TIME]
        return alike and self.load(info, None).copy_of.startswith(session_id)

    def _try(self, info: PointInfo) -> Point | IntegrityError | None:
        try:
            return self.load(info, None)
        except NotFoundError:
            return None
        except IntegrityError as error:
            return error


def _damaged(info: PointInfo, why: str) -> IntegrityError:
    return IntegrityError(
        f"{why}; 'vmkeep forget {info.vm} {info.session} --reason damaged' gives it up, and prune works again"
    )
