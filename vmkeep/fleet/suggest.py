"""What somebody may have meant by a word that is not known."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHOWN: Final = 8


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` or, when nothing is near, the first of what is known."""
    choices = [str(one) for one in known]
    by_case = {one.lower(): one for one in choices}
    near = difflib.get_close_matches(word.lower(), by_case, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {by_case[near[0]]!r}?"
    if not choices:
        return "; none is declared"
    return f"; known: {', '.join(choices[:_SHOWN])}{', ...' if len(choices) > _SHOWN else ''}"
