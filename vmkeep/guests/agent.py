"""A guest reached by its QEMU guest agent.

What an agent cannot do in one go is done in several: guest-exec loses the agent over some MiB of output,
so commands are cut off inside the guest, and streams go through a small folder of parts in the guest.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Final

from vmkeep.errors import GuestError, UnsupportedError, VmkeepError
from vmkeep.guests import freeze_scripts, scripts
from vmkeep.guests.agent_commands import Commands
from vmkeep.guests.agent_streams import Spool
from vmkeep.guests.base import FREEZE_S, HOLD_S, OUTPUT_LIMIT, PING_S, QUIET_S, Completed
from vmkeep.guests.patience import until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from vmkeep.guests.base import AgentChannel

_CALL_S: Final = 10.0
"""How long one call of a healthy agent may take."""


class AgentGuest:
    """A `Guest`; takes over *channel*, and closes it."""

    def __init__(self, channel: AgentChannel, *, name: str) -> None:
        self._channel = channel
        self._agent = Commands(channel, name=name)
        self._holding = False
        self._watchdog: int | None = None
        self.name = name

    def ping(self, *, timeout_s: float = PING_S) -> None:
        """Return if the agent answers."""
        self._agent.ping(timeout_s)

    def run(self, command: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:  # noqa: A002  (subprocess calls it so)
        """Run a command to its end, whatever its exit code."""
        scripts.check(command, input)
        otherwise = f"{self.name}: {command[0]} was not over"
        # The guest gives up a little later than we do, so that its own end is never taken for the command's.
        words = scripts.words(scripts.RUN + "exit $code\n", str(math.ceil(timeout_s) + 1), *command)
        pid = self._start(words, input, timeout_s)
        ended = until(
            lambda left: self._agent.ended(pid, min(left, _CALL_S)), timeout_s=timeout_s, otherwise=otherwise
        )
        if len(ended.out) > OUTPUT_LIMIT:
            raise GuestError(f"{self.name}: {command[0]} wrote over {OUTPUT_LIMIT} bytes: stream its output")
        return Completed(ended.code, ended.out, ended.err)

    def stream_out(self, command: Sequence[str], *, quiet_s: float = QUIET_S) -> Iterator[bytes]:
        """Yield what a command writes, without bound; about 3 MB/s."""
        scripts.check(command)
        yield from Spool(self._agent, self._start, self.name, quiet_s).read(command)

    def stream_in(
        self, command: Sequence[str], blocks: Iterable[bytes], *, quiet_s: float = QUIET_S
    ) -> Completed:
        """Feed *blocks* to a command, without bound; about 3 MB/s."""
        scripts.check(command)
        return Spool(self._agent, self._start, self.name, quiet_s).write(command, blocks)

    def freeze(self, *, timeout_s: float = FREEZE_S, hold_s: float = HOLD_S) -> int:
        """Freeze all file systems; the agent's own hooks run before and after."""
        if self._agent.frozen(min(timeout_s, _CALL_S)):
            raise GuestError(f"{self.name} is frozen already: thaw it first")
        self._arm(hold_s)
        self._holding = True
        try:
            return self._agent.freeze(timeout_s)
        except BaseException:
            with contextlib.suppress(VmkeepError):
                self.thaw(timeout_s=timeout_s)
            raise

    def thaw(self, *, timeout_s: float = FREEZE_S) -> int:
        """Thaw all file systems, whoever froze them."""
        count = self._agent.thaw(timeout_s)
        self._holding = False
        self._disarm()
        return count

    def frozen(self, *, timeout_s: float = PING_S) -> bool:
        """Tell whether the guest was frozen by its agent, and not thawed by it since."""
        return self._agent.frozen(timeout_s)

    def addresses(self, *, timeout_s: float = PING_S) -> tuple[str, ...]:
        """Return the guest's own IP addresses, IPv4 first."""
        return self._agent.addresses(timeout_s)

    def close(self) -> None:
        """Thaw what this object froze, and let go of the channel."""
        try:
            if self._holding:
                self.thaw()
        finally:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, words: Sequence[str], data: bytes, timeout_s: float) -> int:
        try:
            return self._agent.start(words, data, timeout_s)
        except GuestError as error:
            raise self._explained(error) from error

    def _explained(self, error: GuestError) -> GuestError | UnsupportedError:
        """Say why guest-exec was refused, where that is known."""
        if self._agent.frozen(_CALL_S):
            return GuestError(f"{self.name} is frozen, and runs no command until it thaws")
        if "guest-exec" not in self._agent.enabled(_CALL_S):
            return UnsupportedError(
                f"{self.name}: its guest agent is not allowed to run commands: allow guest-exec and "
                "guest-exec-status in the agent's configuration (/etc/sysconfig/qemu-ga, /etc/qemu)"
            )
        return error

    def _arm(self, hold_s: float) -> None:
        """Let the guest thaw by itself after *hold_s*; where it runs no commands, it cannot."""
        with contextlib.suppress(GuestError, UnsupportedError):
            words = scripts.words(freeze_scripts.THAW_LATER, str(math.ceil(hold_s)))
            self._watchdog = self._start(words, b"", _CALL_S)

    def _disarm(self) -> None:
        if self._watchdog is None:
            return
        # It only costs a process in the guest until it ends by itself; a thaw that worked is no failure.
        with contextlib.suppress(VmkeepError):
            self._start(scripts.words('kill "$1"', str(self._watchdog)), b"", _CALL_S)
        self._watchdog = None
