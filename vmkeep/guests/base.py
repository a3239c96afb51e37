"""The inside of a running VM: the one Protocol behind which every way into it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from vmkeep.units import KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

OUTPUT_LIMIT: Final = MiB
"""The most bytes that `Guest.run` returns of the standard output, and takes as input."""
ERROR_LIMIT: Final = 64 * KiB
"""The bytes of the standard error that are kept: the first ones."""
PING_S: Final = 5.0
"""How long a guest that is well may take to answer, in seconds."""
FREEZE_S: Final = 30.0
"""How long freezing or thawing may take, in seconds."""
HOLD_S: Final = 60.0
"""How long a guest stays frozen at most, in seconds: it then thaws by itself, whatever became of us."""
QUIET_S: Final = 300.0
"""How long a stream may stand still, in seconds."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended inside the guest."""

    code: int
    """Its exit code; 128 and the signal's number if a signal ended it."""
    out: bytes
    err: bytes
    """The first bytes of its standard error (`ERROR_LIMIT`)."""


class Guest(Protocol):
    """One running VM, seen from its inside. For one thread at a time, except `thaw` and `close`.

    Commands are lists of words; no shell looks at them. Every call ends within its time, and raises

        TemporaryError     no answer in time, or the guest was lost: the same call may succeed later
        GuestError         the guest answered, and refuses, or the command failed
        UnsupportedError   the guest lacks what is needed, for good
    """

    @property
    def name(self) -> str:
        """How errors call the guest."""

    def ping(self, *, timeout_s: float = PING_S) -> None:
        """Return if the guest answers."""

    def run(self, command: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:  # noqa: A002  (subprocess calls it so)
        """Run a command to its end, whatever its exit code.

        A command that is not over in time is ended inside the guest too.

        Args:
            input: Its standard input, at most `OUTPUT_LIMIT` bytes.

        Raises:
            GuestError: it wrote more than `OUTPUT_LIMIT` bytes, or the guest is frozen.
            InputError: the input is too large: `stream_in` takes it.
        """

    def stream_out(self, command: Sequence[str], *, quiet_s: float = QUIET_S) -> Iterator[bytes]:
        """Yield what a command writes, in pieces of any size, without bound.

        Only a stream that was read to its end is whole. One that is closed before ends the command.

        Args:
            quiet_s: How long it may stand still.

        Raises:
            GuestError: the command failed; carries what it wrote on its standard error. After the last piece.
        """

    def stream_in(
        self, command: Sequence[str], blocks: Iterable[bytes], *, quiet_s: float = QUIET_S
    ) -> Completed:
        """Feed *blocks* to a command, without bound, and return it when it ended with 0.

        The command sees the end of its input only after the last block. When anything fails before,
        it is killed instead: it never takes half of the input for all of it.

        Raises:
            GuestError: the command failed, or ended before it had read all.
        """

    def freeze(self, *, timeout_s: float = FREEZE_S, hold_s: float = HOLD_S) -> int:
        """Hold all writes to the guest's file systems, with all data on the disks; return how many.

        Freezing a frozen guest is an error. After an error nothing is frozen.

        Args:
            hold_s: The guest thaws by itself after so long, where it can run a command.
        """

    def thaw(self, *, timeout_s: float = FREEZE_S) -> int:
        """Let writes go on; return how many file systems thawed. Thawing a thawed guest is fine: 0.

        Fewer than `freeze` returned means that the guest thawed by itself in between: what was read
        meanwhile does not show one moment.
        """

    def frozen(self, *, timeout_s: float = PING_S) -> bool:
        """Tell whether the guest was frozen, by anyone it knows of, and not thawed since."""

    def addresses(self, *, timeout_s: float = PING_S) -> tuple[str, ...]:
        """Return the guest's own IP addresses, IPv4 first, without loopback and link-local ones."""

    def close(self) -> None:
        """Let go of connections; thaws what this object froze. A second call does nothing."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class AgentChannel(Protocol):
    """The way to one QEMU guest agent; each hypervisor has its own. One command at a time."""

    def call(self, execute: str, arguments: Mapping[str, object], *, timeout_s: float) -> object:
        """Send one command, and return what stands under `return` in its answer.

        The answer of a command that was given up is never taken for that of the next one.

        Args:
            execute: Such as `guest-ping`. See: QEMU guest agent protocol reference.

        Raises:
            TemporaryError: no answer in time, or no agent is connected.
            GuestError: the agent answered with an error; the message holds its words.
        """

    def close(self) -> None:
        """Let go of the channel; a second call does nothing."""
