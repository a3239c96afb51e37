"""The guest agent's commands as functions: arguments in, checked answers out.

A guest is not trusted: an answer of the wrong shape is an error, not a surprise later.
See: QEMU Guest Agent Protocol Reference.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from vmkeep.errors import GuestError, TemporaryError
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmkeep.guests.base import AgentChannel

PIECE: Final = 384 * KiB
"""Bytes moved in one call; libvirt takes ten times that, and the agent's own limit is beyond."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that the agent ran."""

    code: int
    out: bytes
    err: bytes


class Commands:
    """What one agent can be told to do."""

    def __init__(self, channel: AgentChannel, *, name: str) -> None:
        self._channel = channel
        self._name = name

    def ping(self, timeout_s: float) -> None:
        """Return when the agent answered."""
        self._channel.call("guest-ping", {}, timeout_s=timeout_s)

    def start(self, words: Sequence[str], data: bytes, timeout_s: float) -> int:
        """Start a shell with *words*; return its process id."""
        arguments: dict[str, object] = {"path": "/bin/sh", "arg": [*words], "capture-output": True}
        if data:
            arguments["input-data"] = base64.b64encode(data).decode()
        answer = self._channel.call("guest-exec", arguments, timeout_s=timeout_s)
        return self._field(answer, "pid", int)

    def ended(self, pid: int, timeout_s: float) -> Ended | None:
        """Return how the command ended, once; None while it runs.

        Raises:
            TemporaryError: the agent was started anew since, and does not know it any more.
        """
        try:
            answer = self._channel.call("guest-exec-status", {"pid": pid}, timeout_s=timeout_s)
        except GuestError as error:
            raise TemporaryError(f"{self._name}: its guest agent lost a command: {error}") from error
        if not self._field(answer, "exited", bool):
            return None
        signal = self._field(answer, "signal", int, 0)
        code = self._field(answer, "exitcode", int, 128 + signal)
        return Ended(code, self._bytes(answer, "out-data"), self._bytes(answer, "err-data"))

    def read_file(self, path: str, timeout_s: float) -> Iterator[bytes]:
        """Yield a file's bytes.

        Raises:
            GuestError: among other reasons, there is none.
        """
        handle = self._open(path, "r", timeout_s)
        try:
            end = False
            while not end:
                call = {"handle": handle, "count": PIECE}
                answer = self._channel.call("guest-file-read", call, timeout_s=timeout_s)
                end = self._field(answer, "eof", bool)
                if data := self._bytes(answer, "buf-b64"):
                    yield data
        finally:
            self._close(handle, timeout_s)

    def write_file(self, path: str, data: bytes | memoryview, timeout_s: float) -> None:
        """Make a file of *data*; one that is there is replaced."""
        handle = self._open(path, "w", timeout_s)
        try:
            for start in range(0, len(data), PIECE):
                piece = base64.b64encode(data[start : start + PIECE]).decode()
                call = {"handle": handle, "buf-b64": piece}
                self._channel.call("guest-file-write", call, timeout_s=timeout_s)
        finally:
            self._close(handle, timeout_s)

    def exists(self, path: str, timeout_s: float) -> bool:
        """Tell whether a file can be read."""
        try:
            self._close(self._open(path, "r", timeout_s), timeout_s)
        except GuestError:
            return False
        return True

    def freeze(self, timeout_s: float) -> int:
        """Freeze all file systems; return how many."""
        return self._number(self._channel.call("guest-fsfreeze-freeze", {}, timeout_s=timeout_s))

    def thaw(self, timeout_s: float) -> int:
        """Thaw all file systems; return how many were frozen."""
        return self._number(self._channel.call("guest-fsfreeze-thaw", {}, timeout_s=timeout_s))

    def frozen(self, timeout_s: float) -> bool:
        """Tell whether the agent froze, and did not thaw since."""
        return self._channel.call("guest-fsfreeze-status", {}, timeout_s=timeout_s) == "frozen"

    def enabled(self, timeout_s: float) -> set[str]:
        """Return the commands that the agent carries out."""
        answer = self._channel.call("guest-info", {}, timeout_s=timeout_s)
        known = self._field(answer, "supported_commands", list)
        return {self._field(one, "name", str) for one in known if self._field(one, "enabled", bool)}

    def addresses(self, timeout_s: float) -> tuple[str, ...]:
        """Return the guest's addresses that others may reach, IPv4 first."""
        answer = self._channel.call("guest-network-get-interfaces", {}, timeout_s=timeout_s)
        if not isinstance(answer, list):
            raise self._odd(answer)
        found = []
        for interface in answer:
            for one in self._field(interface, "ip-addresses", list, []):
                text = self._field(one, "ip-address", str)
                try:
                    address = ipaddress.ip_address(text)
                except ValueError as error:
                    raise self._odd(text) from error
                if not address.is_loopback and not address.is_link_local:
                    found.append(address)
        return tuple(str(one) for one in sorted(found, key=lambda one: one.version))

    def _open(self, path: str, mode: str, timeout_s: float) -> int:
        return self._number(
            self._channel.call("guest-file-open", {"path": path, "mode": mode}, timeout_s=timeout_s)
        )

    def _close(self, handle: int, timeout_s: float) -> None:
        self._channel.call("guest-file-close", {"handle": handle}, timeout_s=timeout_s)

    def _number(self, answer: object) -> int:
        if not isinstance(answer, int) or answer < 0:
            raise self._odd(answer)
        return answer

    def _field(self, answer: object, key: str, kind: type[_T], default: _T | None = None) -> _T:
        value = answer.get(key, default) if isinstance(answer, dict) else None
        if not isinstance(value, kind):
            raise self._odd(answer)
        return value

    def _bytes(self, answer: object, key: str) -> bytes:
        try:
            return base64.b64decode(self._field(answer, key, str, ""), validate=True)
        except binascii.Error as error:
            raise self._odd(answer) from error

    def _odd(self, answer: object) -> GuestError:
        return GuestError(f"{self._name}: its guest agent answers with rubbish: {str(answer)[:200]}")
