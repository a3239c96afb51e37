"""One command in a guest over SSH: its exit code is told apart from the connection's end.

`ssh` ends with 255 for both. So the guest writes `<token> <code>` behind the command's last error output, and
a session without that was lost.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import subprocess
from typing import TYPE_CHECKING, Final

from vmkeep.disks import scratch, tools
from vmkeep.errors import GuestError, TemporaryError
from vmkeep.guests import scripts
from vmkeep.guests.base import ERROR_LIMIT
from vmkeep.guests.conversation import Conversation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from vmkeep.guests.ssh_connection import Connection

_END_S: Final = 10.0
_FRAME: Final = 'token=$1; shift\n{script}\nprintf \'\\n%s %s\\n\' "$token" "$code" >&2\n'


class Session:
    """A script that runs in the guest; leaving the `with` block ends it."""

    def __init__(  # noqa: PLR0913  (each is a keyword or the script's)
        self,
        connection: Connection,
        script: str,
        arguments: Sequence[str],
        *,
        name: str,
        otherwise: str,
        connect_s: float,
        as_root: bool = False,
    ) -> None:
        """Start *script*, which sets $code.

        Args:
            otherwise: What is said when it does not move any more.
            as_root: By sudo, which must ask for no password.
        """
        self._token = secrets.token_hex(8)
        self._name, self._otherwise = name, otherwise
        words = scripts.words(_FRAME.format(script=script), self._token, *arguments)
        before = ["sudo", "-n"] if as_root else []
        self._process = connection.session([*before, "/bin/sh", *words], timeout_s=connect_s)
        self._talk = Conversation(self._process)

    def send(self, data: bytes | memoryview, patience: Callable[[], float]) -> Iterator[bytes]:
        """Write to the script, and yield what it says meanwhile."""
        with self._translated():
            yield from self._talk.send(data, patience)

    def listen(self, patience: Callable[[], float]) -> Iterator[bytes]:
        """Yield what the script says until it ends, without ending its input."""
        with self._translated():
            yield from self._talk.listen(patience)

    def finish(self, patience: Callable[[], float]) -> Iterator[bytes]:
        """End the script's input, and yield what it says until it ends."""
        self._talk.end_input()
        yield from self.listen(patience)

    def code(self) -> int:
        """Return the exit code, once all was heard.

        Raises:
            TemporaryError: the connection was lost before the end.
        """
        match = self._trailer()
        if match is None:
            words = tools.last_words(self._talk.errors.decode(errors="replace"))
            raise TemporaryError(f"{self._name}: the SSH connection was lost: {words}")
        return int(match[1])

    def errors(self) -> bytes:
        """Return the beginning of what was written on the standard error."""
        match = self._trailer()
        return bytes(self._talk.errors[: match.start() if match else None][:ERROR_LIMIT])

    def require_success(self, command: Sequence[str]) -> None:
        """Raise unless the command ended with 0.

        Raises:
            GuestError: it failed; carries its last words.
        """
        code = self.code()
        if code != 0:
            words = tools.last_words(self.errors().decode(errors="replace"))
            raise GuestError(f"{self._name}: {command[0]} failed ({code}): {words}")

    def close(self) -> None:
        """End the session; the guest notices, and ends the command."""
        self._talk.close()
        try:
            self._process.wait(0.0 if self._trailer() is None else _END_S)
        except subprocess.TimeoutExpired:
            scratch.end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _trailer(self) -> re.Match[bytes] | None:
        return re.search(rb"\n%s (\d+)\n" % self._token.encode(), self._talk.errors)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise TemporaryError(f"{self._name}: {self._otherwise}") from error
