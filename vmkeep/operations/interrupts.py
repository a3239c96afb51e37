"""Signals that wait until they do no harm.

An exception that strikes between any two lines could lose a step that has just ended, and the loop would
wait for it for ever. So while a plan is walked a signal is only noted, and the loop is woken to look.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """The signal that came, if one did."""

    def __init__(self) -> None:
        self.heard: signal.Signals | None = None


@contextmanager
def deferred(wake: Callable[[], None]) -> Iterator[Interrupts]:
    """Note signals that would raise an exception, and raise it when the block has ended.

    Signals are the main thread's: in any other the block runs as it is. A signal that is ignored, or ends
    the process without asking Python, stays so.

    Args:
        wake: called when one comes, between any two lines of the block; it may only do what cannot block.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def note(number: int, _frame: FrameType | None) -> None:
        interrupts.heard = interrupts.heard or signal.Signals(number)
        wake()

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = [number for number, handler in before.items() if callable(handler)]
    for number in taken:
        signal.signal(number, note)
    try:
        yield interrupts
    finally:
        for number in taken:
            signal.signal(number, before[number])
    if interrupts.heard is not None:
        signal.raise_signal(interrupts.heard)
