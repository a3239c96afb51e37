"""How far a step is, as a progress artifact that the Prefect UI shows while it runs."""

from __future__ import annotations

import contextlib
import contextvars
import re
import threading
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_EVERY_S: Final = 2.0
_WORTH: Final = 16 * 1024 * 1024
"""Steps below this many bytes are over before anybody could look."""


@contextlib.contextmanager
def shown(step: str, size: int, told: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """Show the bytes that the block is told as a progress artifact; *told* hears of them too.

    Args:
        size: how many bytes are expected in all.
    """
    if size < _WORTH:
        yield told
        return
    done = 0
    mutex = threading.Lock()

    def count(more: int) -> None:
        nonlocal done
        with mutex:
            done += more
        told(more)

    key = re.sub(r"[^a-z0-9]+", "-", step.lower()).strip("-")
    artifact = create_progress_artifact(progress=0.0, key=key, description=step)
    over = threading.Event()

    def follow() -> None:
        while not over.wait(_EVERY_S):
            _update(artifact, min(99.0, 100.0 * done / size))

    # The library's threads know nothing of Prefect; this one runs in a copy of the task's context.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(follow,), daemon=True)
    thread.start()
    try:
        yield count
    finally:
        over.set()
        thread.join()
    _update(artifact, 100.0)


def _update(artifact: object, percent: float) -> None:
    update_progress_artifact(artifact_id=UUID(str(artifact)), progress=percent)
