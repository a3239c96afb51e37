"""A guest reached by SSH."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import math
import time
from typing import TYPE_CHECKING, Final

from vmkeep.errors import GuestError, TemporaryError, UnsupportedError
from vmkeep.guests import freeze_scripts, scripts
from vmkeep.guests.base import FREEZE_S, HOLD_S, OUTPUT_LIMIT, PING_S, QUIET_S, Completed
from vmkeep.guests.ssh_connection import Connection, Target
from vmkeep.guests.ssh_session import Session
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["SshGuest", "Target"]

_CONNECT_S: Final = 30.0
_FRAME: Final = MiB
"""The most bytes of one frame of a stream into a guest."""


class SshGuest:
    """A `Guest` with a POSIX shell, reached by the OpenSSH client.

    Freezing needs to be root, or sudo without a password.
    """

    def __init__(self, target: Target, *, name: str) -> None:
        self.target = target
        self._connection = Connection(target, name=name)
        self._sudo = target.user not in {None, "root"}
        self._holder: Session | None = None
        self.name = name

    def ping(self, *, timeout_s: float = PING_S) -> None:
        """Return if one can log in and run a command."""
        self.run(["true"], timeout_s=timeout_s)

    def run(self, command: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:  # noqa: A002  (subprocess calls it so)
        """Run a command to its end, whatever its exit code."""
        scripts.check(command, input)
        deadline = time.monotonic() + timeout_s
        # The guest gives up a little later than we do, so that its own end is never taken for the command's.
        arguments = [str(math.ceil(timeout_s) + 1), *command]
        otherwise = f"{command[0]} was not over within {timeout_s:.0f} s"
        with self._session(scripts.RUN, arguments, otherwise, connect_s=timeout_s) as session:
            out = bytearray()
            for block in itertools.chain(
                session.send(input, _left(deadline)), session.finish(_left(deadline))
            ):
                out += block
                if len(out) > OUTPUT_LIMIT:
                    raise GuestError(
                        f"{self.name}: {command[0]} wrote over {OUTPUT_LIMIT} bytes: stream its output"
                    )
            return Completed(session.code(), bytes(out), session.errors())

    def stream_out(self, command: Sequence[str], *, quiet_s: float = QUIET_S) -> Iterator[bytes]:
        """Yield what a command writes, without bound."""
        scripts.check(command)
        with self._session(scripts.STREAM_OUT, command, _stood_still(command, quiet_s)) as session:
            yield from session.listen(lambda: quiet_s)
            session.require_success(command)

    def stream_in(
        self, command: Sequence[str], blocks: Iterable[bytes], *, quiet_s: float = QUIET_S
    ) -> Completed:
        """Feed *blocks* to a command, without bound."""
        scripts.check(command)
        arguments = [scripts.new_folder(), *command]
        out = bytearray()
        with self._session(scripts.STREAM_IN, arguments, _stood_still(command, quiet_s)) as session:
            for frame in _frames(blocks):
                for said in session.send(frame, lambda: quiet_s):
                    out += said[: OUTPUT_LIMIT - len(out)]
            for said in session.finish(lambda: quiet_s):
                out += said[: OUTPUT_LIMIT - len(out)]
            session.require_success(command)
            return Completed(0, bytes(out), session.errors())

    def freeze(self, *, timeout_s: float = FREEZE_S, hold_s: float = HOLD_S) -> int:
        """Freeze all file systems on disks for as long as a session in the guest is open.

        Losing the connection thaws, and so does the guest itself after *hold_s*.
        """
        holder = self._session(
            freeze_scripts.FREEZE,
            [str(math.ceil(hold_s))],
            f"not frozen within {timeout_s:.0f} s",
            as_root=True,
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(holder)
            count = self._frozen_now(holder, timeout_s)
            stack.pop_all()
        if self._holder is not None:
            self._holder.close()  # its time was over
        self._holder = holder
        return count

    def thaw(self, *, timeout_s: float = FREEZE_S) -> int:
        """Thaw the file systems that vmkeep froze by SSH, in this process or another."""
        holder, self._holder = self._holder, None
        if holder is not None:
            with holder, contextlib.suppress(TemporaryError):
                for _ in holder.send(b"\n", lambda: timeout_s):
                    pass
                count = _number(self._line(holder, timeout_s), "thawed")
                if count is not None:
                    return count
        with self._session(
            freeze_scripts.THAW, [], f"not thawed within {timeout_s:.0f} s", connect_s=timeout_s, as_root=True
        ) as session:
            return _number(self._line(session, timeout_s), "thawed") or 0

    def frozen(self, *, timeout_s: float = PING_S) -> bool:
        """Tell whether vmkeep froze the guest by SSH, and nobody thawed it since."""
        return self.run(["test", "-d", freeze_scripts.FROZEN], timeout_s=timeout_s).code == 0

    def addresses(self, *, timeout_s: float = PING_S) -> tuple[str, ...]:
        """Return the guest's own IP addresses, IPv4 first."""
        done = self.run(["ip", "-o", "addr", "show", "scope", "global"], timeout_s=timeout_s)
        if done.code != 0:
            raise GuestError(f"{self.name}: 'ip addr' failed: {done.err.decode(errors='replace').strip()}")
        found = []
        for line in done.out.decode(errors="replace").splitlines():
            words = line.split()
            with contextlib.suppress(ValueError, IndexError):
                found.append(ipaddress.ip_interface(words[3]).ip)
        return tuple(str(one) for one in sorted(found, key=lambda one: one.version))

    def close(self) -> None:
        """Thaw what this object froze, and end the connection."""
        try:
            if self._holder is not None:
                self.thaw()
        finally:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _session(
        self,
        script: str,
        arguments: Sequence[str],
        otherwise: str,
        *,
        connect_s: float = _CONNECT_S,
        as_root: bool = False,
    ) -> Session:
        return Session(
            self._connection, script, arguments, name=self.name, otherwise=otherwise, connect_s=connect_s,
            as_root=as_root and self._sudo,
        )  # fmt: skip

    def _line(self, session: Session, timeout_s: float) -> str:
        """Return the first line that a session says, or all of it when it ended before."""
        said = bytearray()
        for block in session.listen(_left(time.monotonic() + timeout_s)):
            said += block
            if b"\n" in said or len(said) > OUTPUT_LIMIT:
                break
        return said.partition(b"\n")[0].decode(errors="replace")

    def _frozen_now(self, holder: Session, timeout_s: float) -> int:
        said = self._line(holder, timeout_s)
        count = _number(said, "frozen")
        if count is not None:
            return count
        if said == "frozen already":
            raise GuestError(f"{self.name} is frozen already: thaw it first")
        words = said or holder.errors().decode(errors="replace").strip() or "the session ended"
        if "not found" in words:
            raise UnsupportedError(f"{self.name} cannot be frozen: {words}")
        raise GuestError(f"{self.name} was not frozen: {words}")


def _left(deadline: float) -> Callable[[], float]:
    """Return a patience that ends at *deadline*."""
    return lambda: deadline - time.monotonic()


def _stood_still(command: Sequence[str], quiet_s: float) -> str:
    return f"the stream of {command[0]} did not move within {quiet_s:.0f} s"


def _number(said: str, word: str) -> int | None:
    first, _, rest = said.partition(" ")
    return int(rest) if first == word and rest.isdecimal() else None


def _frames(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield each block with its length before it, and at last the word that says that this was all."""
    for block in blocks:
        for start in range(0, len(block), _FRAME):
            piece = block[start : start + _FRAME]
            yield b"%d\n" % len(piece)
            yield piece
    yield b"end\n"
