"""Streams of any length through a guest agent: parts in a private folder of the guest.

    command -> 2, 1 -> 0 -> us      two parts wait at most; whoever took one says so, and the next is made

The agent itself reads and writes files only, a piece in each call; a pipe would lose what does not fit.
The guest ends the command by itself, and removes the folder, when we went away.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from vmkeep.disks import tools
from vmkeep.errors import GuestError, VmkeepError
from vmkeep.guests import scripts
from vmkeep.guests.base import OUTPUT_LIMIT, Completed
from vmkeep.guests.patience import until
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmkeep.guests.agent_commands import Commands, Ended

_T = TypeVar("_T")
_PART: Final = 2 * MiB
_WAITING: Final = 2
"""Parts that may lie in the guest."""
_CALL_S: Final = 15.0
_END_S: Final = 5.0
"""How long the end of a command that was stopped is waited for."""


@dataclass(frozen=True, slots=True)
class Spool:
    """How one guest runs a command whose input or output is a stream."""

    agent: Commands
    start: Callable[[Sequence[str], bytes, float], int]
    """Starts a shell in the guest: words, input, seconds; returns a process id."""
    name: str
    """How errors call the guest."""
    quiet_s: float
    """How long the stream may stand still."""

    def read(self, command: Sequence[str]) -> Iterator[bytes]:
        """Yield what a command writes.

        Raises:
            GuestError: it failed; after the last piece.
            TemporaryError: the stream stood still too long.
        """
        folder = scripts.new_folder()
        pid = self._begin(scripts.SPOOL_OUT, folder, command)
        number, ended = 0, None
        try:
            while (ended := self._next(f"{folder}/{number}", pid, command)) is None:
                yield from self.agent.read_file(f"{folder}/{number}", _CALL_S)
                self.agent.write_file(f"{folder}/{number}", b"", _CALL_S)  # says that it was taken
                number += 1
        finally:
            if ended is None:
                with contextlib.suppress(VmkeepError):
                    self.start(scripts.words(scripts.STOP, folder), b"", _CALL_S)
        self._require_success(ended, command)

    def write(self, command: Sequence[str], blocks: Iterable[bytes]) -> Completed:
        """Feed *blocks* to a command.

        Raises:
            GuestError: it failed, or ended early.
            TemporaryError: the stream stood still too long.
        """
        folder = scripts.new_folder()
        pid = self._begin(scripts.SPOOL_IN, folder, command)
        ended = None
        try:
            self._until(lambda _: self.agent.exists(f"{folder}/ready", _CALL_S) or None, command)
            ended = self._feed(folder, pid, command, blocks)
        finally:
            if ended is None:
                self._stop(folder, pid)
        self._require_success(ended, command)
        return Completed(ended.code, ended.out[:OUTPUT_LIMIT], ended.err)

    def _next(self, path: str, pid: int, command: Sequence[str]) -> Ended | None:
        """Return how the command ended, or None when there is another part."""

        def look(_left: float) -> tuple[Ended | None] | None:
            if self.agent.exists(path, _CALL_S):
                return (None,)
            # It ends only after its last part was taken.
            ended = self.agent.ended(pid, _CALL_S)
            return (ended,) if ended else None

        return self._until(look, command)[0]

    def _feed(self, folder: str, pid: int, command: Sequence[str], blocks: Iterable[bytes]) -> Ended:
        for number, part in enumerate(_parts(blocks)):
            before = f"{folder}/{number - _WAITING}.whole" if number >= _WAITING else None

            def look(_left: float, before: str | None = before) -> tuple[Ended | None] | None:
                ended = self.agent.ended(pid, _CALL_S)
                waits = ended is None and before is not None and self.agent.exists(before, _CALL_S)
                return None if waits else (ended,)

            (ended,) = self._until(look, command)
            if ended is not None:
                return ended
            try:
                self.agent.write_file(f"{folder}/{number}", part, _CALL_S)
                self.agent.write_file(f"{folder}/{number}.whole", b"", _CALL_S)
            except GuestError:
                return self._ended(pid)  # with the command its folder went
        return self._until(lambda left: self.agent.ended(pid, min(left, _CALL_S)), command)

    def _begin(self, script: str, folder: str, command: Sequence[str]) -> int:
        words = scripts.words(script, folder, str(math.ceil(self.quiet_s)), *command)
        return self.start(words, b"", _CALL_S)

    def _stop(self, folder: str, pid: int) -> None:
        """End a command whose input will not become whole, and wait until it has ended."""
        with contextlib.suppress(VmkeepError):
            self.agent.write_file(f"{folder}/stop", b"", _CALL_S)
            self._ended(pid)

    def _ended(self, pid: int) -> Ended:
        """Return how a command ended that is over now, or nearly."""
        otherwise = f"{self.name}: a command was not over"
        return until(lambda _: self.agent.ended(pid, _CALL_S), timeout_s=_END_S, otherwise=otherwise)

    def _until(self, look: Callable[[float], _T | None], command: Sequence[str]) -> _T:
        what = f"{self.name}: the stream of {command[0]} did not move"
        return until(look, timeout_s=self.quiet_s, otherwise=what)

    def _require_success(self, ended: Ended, command: Sequence[str]) -> None:
        if ended.code != 0:
            words = tools.last_words(ended.err.decode(errors="replace"))
            raise GuestError(f"{self.name}: {command[0]} failed ({ended.code}): {words}")


def _parts(blocks: Iterable[bytes]) -> Iterator[memoryview]:
    """Yield blocks in parts of about the same size, and an empty one at the end."""
    part = bytearray()
    for block in blocks:
        view = memoryview(block)
        while view:
            room = _PART - len(part)
            part += view[:room]
            view = view[room:]
            if len(part) == _PART:
                yield memoryview(bytes(part))
                part.clear()
    if part:
        yield memoryview(bytes(part))
    yield memoryview(b"")
