"""A store that fails when it is told to: every way in which a store or a process lets one down."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from vmkeep.errors import AccessError, NotFoundError, TemporaryError

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vmkeep.stores.base import ObjectInfo, Store


class Killed(BaseException):
    """The process would have ended here."""


class Fault(StrEnum):
    """What goes wrong with a request."""

    AWAY = "the store does not answer"
    LOST = "the request is carried out, and its answer is lost"
    CUT = "the answer has half of its bytes"
    FLIPPED = "one bit of the answer is wrong"
    FULL = "the disk of the store is full"
    DENIED = "the credentials have expired"
    KILLED = "the process ends before the request"
    KILLED_AFTER = "the process ends behind the request"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, in the order in which they came."""

    number: int
    """From 1."""
    verb: str
    """`put`, `get`, `list` or `delete`."""
    key: str


class FaultyStore:
    """Passes requests on, and lets those go wrong that *fault* names. Safe to use from several threads.

    After a `KILLED` every further request is killed too, as a process that ended sends none.

    Args:
        fault: told each request; returns what goes wrong with it, or `None`.
    """

    def __init__(
        self, store: Store, fault: Callable[[Request], Fault | None] = lambda _request: None
    ) -> None:
        self.requests: list[Request] = []
        self._store = store
        self._fault = fault
        self._lock = threading.Lock()
        self._dead = False

    @property
    def url(self) -> str:
        return self._store.url

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        fault = self._begin("put", key)
        if fault is Fault.FULL:
            raise TemporaryError(f"cannot write {key}: {errno.errorcode[errno.ENOSPC]}")
        return self._end(fault, self._store.put_if_absent(key, body))

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        fault = self._begin("get", key)
        try:
            found = self._store.get(key, start, length)
        except NotFoundError:
            self._end(fault, None)  # that it is not there is an answer too
            raise
        data = self._end(fault, found)
        if fault is Fault.CUT:
            return data[: len(data) // 2]
        if fault is Fault.FLIPPED:
            return flip(data, len(data) // 2)
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._end(self._begin("list", prefix), self._store.list(prefix))

    def delete(self, key: str) -> None:
        fault = self._begin("delete", key)
        self._store.delete(key)
        self._end(fault, None)

    def close(self) -> None:
        self._store.close()

    def _begin(self, verb: str, key: str) -> Fault | None:
        with self._lock:
            request = Request(len(self.requests) + 1, verb, key)
            self.requests.append(request)
            fault = self._fault(request)
            if self._dead or fault is Fault.KILLED:
                self._dead = True
                raise Killed(request)
        if fault is Fault.DENIED:
            raise AccessError(f"{self.url}: {verb} {key} is denied: {fault.value}")
        if fault is Fault.AWAY:
            raise TemporaryError(f"{self.url} does not answer (request {request.number}: {verb} {key})")
        return fault

    def _end(self, fault: Fault | None, answer: T) -> T:
        if fault is Fault.LOST:
            raise TemporaryError(f"the answer of {self.url} was lost")
        if fault is Fault.KILLED_AFTER:
            self._dead = True
            raise Killed
        return answer


def at(number: int, fault: Fault) -> Callable[[Request], Fault | None]:
    """Let request *number* go wrong."""
    return lambda request: fault if request.number == number else None


def on(verb: str, prefix: str, fault: Fault, *, times: int = 1) -> Callable[[Request], Fault | None]:
    """Let the first requests of this kind go wrong."""
    left = times

    def choose(request: Request) -> Fault | None:
        nonlocal left
        if request.verb != verb or not request.key.startswith(prefix) or not left:
            return None
        left -= 1
        return fault

    return choose


def flip(data: bytes, position: int, bit: int = 0) -> bytes:
    """Return *data* with one bit flipped."""
    changed = bytearray(data)
    if changed:
        changed[position] ^= 1 << bit
    return bytes(changed)
