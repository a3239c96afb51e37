"""Asking again until there is an answer, or too much time went by."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from vmkeep.errors import TemporaryError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_FIRST_S: Final = 0.005
_LONGEST_S: Final = 0.25


def until(look: Callable[[float], _T | None], *, timeout_s: float, otherwise: str) -> _T:
    """Call *look* until it returns something, at first often, then four times a second.

    Args:
        look: is told how many seconds are left.

    Raises:
        TemporaryError: nothing came within *timeout_s*; says *otherwise*.
    """
    deadline = time.monotonic() + timeout_s
    pause = _FIRST_S
    while (left := deadline - time.monotonic()) > 0:
        found = look(left)
        if found is not None:
            return found
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_S)
    raise TemporaryError(f"{otherwise} within {timeout_s:.0f} s")
