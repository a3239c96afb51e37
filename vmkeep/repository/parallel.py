"""Work done by several threads, with results in order and a bound on what waits."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
R = TypeVar("R")

THREADS: Final = min(4, os.cpu_count() or 1)
"""The heavy calls (compression, hashes, ciphers, reads) all let go of the interpreter's lock."""
TRANSFERS: Final = 4
"""Requests to a store at the same time; these wait more than they work."""
READS: Final = 8
"""Ranges that are read and opened at the same time: a far store lets each wait, a near one loses nothing."""


def in_order(function: Callable[[T], R], items: Iterable[T], *, threads: int = THREADS) -> Iterator[R]:
    """Yield `function(item)` for each item, in order, computed by *threads* at once.

    At most `3 * threads` items are taken ahead of the result that is yielded. After an error nothing
    new is begun, and all threads have ended when it is raised.
    """
    left = iter(items)
    first = list(islice(left, 2))
    if len(first) < 2:  # a thread would cost more than it brings
        yield from map(function, first)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, "vmkeep") as pool:
        try:
            for item in chain(first, left):
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 3 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def for_each(function: Callable[[T], object], items: Iterable[T], *, threads: int = THREADS) -> None:
    """Call `function(item)` for each item; raise the first error once all threads have ended."""
    for _ in in_order(function, items, threads=threads):
        pass
