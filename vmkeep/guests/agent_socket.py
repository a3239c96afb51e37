r"""The channel to a QEMU guest agent through the Unix socket of a plain QEMU process.

An answer that was given up may still come. So every connection begins, and goes on after a time-out, with

    us      \xff{"execute": "guest-sync-delimited", "arguments": {"id": 7}}
    agent   late answers... \xff{"return": 7}

and everything before the \xff is forgotten. See: QEMU Guest Agent Protocol Reference, guest-sync-delimited.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from vmkeep.errors import GuestError, TemporaryError
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ANSWER: Final = 16 * MiB
"""The largest answer that is read; a guest is not trusted to end its own."""
_DELIMITER: Final = b"\xff"


class SocketChannel:
    """An `AgentChannel`; connects when first used. Safe to use from several threads."""

    def __init__(self, path: Path, *, name: str) -> None:
        self._path = path
        self._name = name
        self._socket: socket.socket | None = None
        self._synced = False
        self._received = bytearray()
        self._mutex = threading.Lock()

    def call(self, execute: str, arguments: Mapping[str, object], *, timeout_s: float) -> object:
        """Send one command, and return what stands under `return` in its answer.

        Raises:
            TemporaryError: no answer in time, or nobody listens at the socket.
            GuestError: the agent answered with an error.
        """
        deadline = time.monotonic() + timeout_s
        if not self._mutex.acquire(timeout=timeout_s):
            raise TemporaryError(f"{self._name}: its guest agent is busy with another command")
        try:
            self._synchronize(deadline)
            self._synced = False
            self._send(_command(execute, arguments), deadline)
            answer = _parsed(self._line(b"\n", deadline))
            self._synced = True
        except TimeoutError as error:
            raise TemporaryError(
                f"{self._name}: its guest agent did not answer {execute} within {timeout_s:.0f} s"
            ) from error
        except OSError as error:
            self._disconnect()
            raise TemporaryError(f"{self._name}: no guest agent at {self._path}: {error}") from error
        except ValueError as error:
            self._disconnect()
            raise GuestError(
                f"{self._name}: its guest agent answers {execute} with rubbish: {error}"
            ) from None
        finally:
            self._mutex.release()
        if "error" in answer:
            raise GuestError(f"{self._name}: its guest agent refuses {execute}: {_words(answer['error'])}")
        return answer.get("return")

    def close(self) -> None:
        """Let go of the socket."""
        self._disconnect()

    def _synchronize(self, deadline: float) -> None:
        """Make sure that the next line is the answer to what is sent next."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(_left(deadline))
            self._socket.connect(str(self._path))
        elif self._synced:
            return
        token = secrets.randbelow(2**31)
        self._send(_DELIMITER + _command("guest-sync-delimited", {"id": token}), deadline)
        while True:
            self._line(_DELIMITER, deadline, keep=False)
            if _parsed(self._line(b"\n", deadline)).get("return") == token:
                return

    def _send(self, data: bytes, deadline: float) -> None:
        if self._socket is None:
            raise ConnectionError("the connection was closed")
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(data)

    def _line(self, end: bytes, deadline: float, *, keep: bool = True) -> bytes:
        """Return what comes before *end*; what comes before it without end is too much, unless forgotten."""
        begin = 0
        while (at := self._received.find(end, begin)) < 0:
            if not keep:
                self._received.clear()
            begin = len(self._received)
            if begin > _ANSWER:
                raise ValueError(f"more than {_ANSWER} bytes")
            if self._socket is None:
                raise ConnectionError("the connection was closed")
            self._socket.settimeout(_left(deadline))
            data = self._socket.recv(MiB)
            if not data:
                raise ConnectionError("the guest's side closed the connection")
            self._received += data
        line = bytes(self._received[:at])
        del self._received[: at + 1]
        return line

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._synced = False
        self._received.clear()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _command(execute: str, arguments: Mapping[str, object]) -> bytes:
    return json.dumps({"execute": execute, "arguments": dict(arguments)}).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, object]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"{line[:60]!r}")  # noqa: TRY004  (json raises the same for what is no JSON)
    return value


def _words(error: object) -> str:
    return str(error.get("desc", error)) if isinstance(error, dict) else str(error)
