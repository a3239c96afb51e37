"""A child process spoken to through its pipes, with bounds on time and memory.

Writing and reading happen together: neither side waits for the other with full pipes.
"""

from __future__ import annotations

import os
import selectors
from typing import TYPE_CHECKING, Final

from vmkeep.guests.base import ERROR_LIMIT
from vmkeep.units import KiB

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

_READ: Final = 256 * KiB
_TAIL: Final = 256
"""Bytes of the end of the standard error that are kept whatever came before."""


class Conversation:
    """The pipes of one process; the process stays the caller's."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None  # noqa: S101  (opened with three pipes, by this package)
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        self._input = process.stdin
        self._outputs = {process.stdout.fileno(): process.stdout, process.stderr.fileno(): process.stderr}
        self._errors_fd = process.stderr.fileno()
        self._selector = selectors.DefaultSelector()
        for pipe in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(pipe.fileno(), False)
        for output in self._outputs:
            self._selector.register(output, selectors.EVENT_READ)
        self.errors = bytearray()

    def send(self, data: bytes | memoryview, patience: Callable[[], float]) -> Iterator[bytes]:
        """Write *data*, and yield what is said meanwhile; what a process does not take is dropped.

        Raises:
            TimeoutError: nothing moved for as long as *patience* says, in seconds.
        """
        left = memoryview(data)
        if self._input.closed:
            return
        fd = self._input.fileno()
        self._selector.register(fd, selectors.EVENT_WRITE)
        try:
            while left:
                for ready in self._turn(patience):
                    if ready != fd:
                        yield from self._read(ready)
                        continue
                    try:
                        left = left[os.write(fd, left[:_READ]) :]
                    except BrokenPipeError:
                        left = left[:0]
        finally:
            self._selector.unregister(fd)

    def end_input(self) -> None:
        """Let the process see the end of its input."""
        if not self._input.closed:
            self._input.close()

    def listen(self, patience: Callable[[], float]) -> Iterator[bytes]:
        """Yield what is said until the process closes its outputs.

        Raises:
            TimeoutError: nothing was said for as long as *patience* says, in seconds.
        """
        while self._outputs:
            for ready in self._turn(patience):
                yield from self._read(ready)

    def close(self) -> None:
        """Close all pipes."""
        self.end_input()
        for pipe in self._outputs.values():
            pipe.close()
        self._outputs.clear()
        self._selector.close()

    def _turn(self, patience: Callable[[], float]) -> list[int]:
        ready = [key.fd for key, _ in self._selector.select(max(patience(), 0))]
        if not ready:
            raise TimeoutError
        return ready

    def _read(self, fd: int) -> Iterator[bytes]:
        data = os.read(fd, _READ)
        if not data:
            self._selector.unregister(fd)
            self._outputs.pop(fd).close()
        elif fd != self._errors_fd:
            yield data
        else:
            self.errors += data
            if len(self.errors) > 2 * ERROR_LIMIT:
                del self.errors[ERROR_LIMIT:-_TAIL]
