"""Several processes that use one store, in an order of requests that is chosen and can be chosen again."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vmkeep.testing.faults import Fault, FaultyStore, Killed, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmkeep.stores.base import Store

T = TypeVar("T")
_PATIENCE_S: Final = 60.0


class Inline(Executor):
    """Does at once, in the thread of its caller, what it is given: so one process is one thread."""

    def __init__(self, *_arguments: Any, **_more: Any) -> None:
        """Take what a pool of threads takes."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  (that is what a future does)
            future.set_exception(error)
        return future


class Scheduler:
    """Lets one of several processes go on at a time, from one request to its next.

    Each process is a thread that uses the store that `store` returned for its name, and no other threads.

    Args:
        choose: told the names of the processes that are about to send a request, in order; returns one.
        fault: told a process and its request; returns what goes wrong with it, or `None`.
    """

    def __init__(
        self,
        choose: Callable[[Sequence[str]], str],
        fault: Callable[[str, Request], Fault | None] = lambda _name, _request: None,
    ) -> None:
        self.order: list[tuple[str, Request]] = []
        """The requests, in the order in which they were carried out."""
        self._choose = choose
        self._fault = fault
        self._changed = threading.Condition()
        self._waiting: set[str] = set()
        self._running: set[str] = set()
        self._given_up = False

    def store(self, name: str, store: Store) -> FaultyStore:
        """Return the store as one process sees it."""
        return FaultyStore(store, partial(self._turn, name))

    def run(self, processes: Mapping[str, Callable[[], object]]) -> dict[str, BaseException]:
        """Run the processes until all have ended, and return the errors with which some did.

        Raises:
            TimeoutError: one neither sends a request nor ends.
        """
        errors: dict[str, BaseException] = {}
        threads = []
        try:
            for name, work in processes.items():  # one after the other, each until its first request
                self._running.add(name)
                thread = threading.Thread(target=self._process, args=(name, work, errors), daemon=True)
                threads.append(thread)
                thread.start()
                self._ready()
            while ready := self._ready():
                self._let_go_on(self._choose(ready))
        except BaseException:
            with self._changed:
                self._given_up = True
                self._changed.notify_all()
            raise
        finally:
            for thread in threads:
                thread.join(_PATIENCE_S)
        return errors

    def _process(self, name: str, work: Callable[[], object], errors: dict[str, BaseException]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  (the caller of `run` looks at it)
            errors[name] = error
        finally:
            with self._changed:
                self._running.discard(name)
                self._changed.notify_all()

    def _turn(self, name: str, request: Request) -> Fault | None:
        with self._changed:
            self._waiting.add(name)
            self._running.discard(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: name not in self._waiting or self._given_up)
            if self._given_up:
                raise Killed(request)
            self.order.append((name, request))
        return self._fault(name, request)

    def _ready(self) -> list[str]:
        with self._changed:
            if not self._changed.wait_for(lambda: not self._running, _PATIENCE_S):
                raise TimeoutError(f"{', '.join(sorted(self._running))}: no request for {_PATIENCE_S:.0f} s")
            return sorted(self._waiting)

    def _let_go_on(self, name: str) -> None:
        with self._changed:
            self._waiting.discard(name)
            self._running.add(name)
            self._changed.notify_all()
