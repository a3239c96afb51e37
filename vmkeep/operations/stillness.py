"""Guests that stand still together, for a moment that has a hard end.

freeze: dependents first            thaw: dependencies first
|--------------- at most so many seconds ---------------|
        then a watchdog thaws them, whatever goes on: the moment did not hold
"""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from vmkeep.errors import TemporaryError, VmkeepError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmkeep.guests.base import Guest

_AT_ONCE: Final = 16
_THAW_TRIES: Final = 3
_SPARE_S: Final = 10.0
"""How much longer than we want a guest may stay frozen before it thaws by itself."""


class Stillness:
    """Freezes guests and thaws them; tells whether all of them stood still in between."""

    def __init__(self, guests: Mapping[str, Guest], waves: Sequence[Sequence[str]], limit_s: float) -> None:
        """Take the guests of a group.

        Args:
            guests: By VM.
            waves: The VMs in the order in which they are frozen; each wave at once.
            limit_s: How long they may stand still.
        """
        self._guests, self._waves, self._limit_s = guests, waves, limit_s
        self._lock = threading.RLock()
        self._frozen: dict[str, tuple[int, float]] = {}
        """By VM that stands still: how many file systems, and since when."""
        self._over = False
        self._watchdog = threading.Timer(limit_s, self._expire)
        self._watchdog.daemon = True
        self.longest = 0.0
        """Seconds that the VM that stood still longest did."""
        self.remarks: list[str] = []
        """Why the moment did not hold; empty: it did."""
        self.stuck: dict[str, VmkeepError] = {}
        """Why VMs could not be thawed."""

    def freeze(self) -> None:
        """Freeze all; when one cannot be, all are thawed again, and `remarks` says why."""
        self._watchdog.start()
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="freeze") as pool:
            for wave in self._waves:
                failed = [why for why in pool.map(self._freeze, wave) if why]
                if failed:
                    self.remarks += failed
                    self.thaw()
                    return

    def moment_is_over(self) -> None:
        """Say that nothing needs to stand still any more: what comes from now on does no harm."""
        with self._lock:
            self._over = True
        self._watchdog.cancel()

    def thaw(self) -> None:
        """Thaw all that stand still, dependencies first; a second call thaws what the first could not."""
        self._watchdog.cancel()
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="thaw") as pool:
            for wave in reversed(self._waves):
                [*pool.map(self._thaw, wave)]

    def _freeze(self, vm: str) -> str:
        """Freeze one guest; return why it could not be."""
        guest = self._guests[vm]
        begun = time.monotonic()
        try:
            count = guest.freeze(timeout_s=self._limit_s, hold_s=math.ceil(self._limit_s + _SPARE_S))
        except VmkeepError as error:
            return f"VM {vm} could not be frozen: {error}"
        with self._lock:
            self._frozen[vm] = (count, begun)
            expired = bool(self.remarks) and not self._over
        if expired:  # the watchdog came before this one stood still
            self._thaw(vm)
        return ""

    def _thaw(self, vm: str) -> None:
        with self._lock:
            count, begun = self._frozen.pop(vm, (0, 0.0))
        if not begun:
            return
        try:
            thawed = _persistently(self._guests[vm])
        except VmkeepError as error:
            with self._lock:
                self._frozen[vm] = (count, begun)
                self.stuck[vm] = error
            return
        with self._lock:
            self.stuck.pop(vm, None)
            self.longest = max(self.longest, time.monotonic() - begun)
            if thawed < count:
                self.remarks.append(f"VM {vm} thawed by itself while it should have stood still")

    def _expire(self) -> None:
        with self._lock:
            if self._over:
                return
            self.remarks.append(f"the group stood still for {self._limit_s:g} s, and was thawed (max_freeze)")
        self.thaw()


def _persistently(guest: Guest) -> int:
    """Thaw a guest, several times if need be."""
    for attempt in range(1, _THAW_TRIES):
        try:
            return guest.thaw()
        except TemporaryError:
            time.sleep(attempt)
    return guest.thaw()
