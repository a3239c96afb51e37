"""Serves disks read-only over NBD, so that QEMU, `qemu-img`, `nbdcopy` and any NBD client can read them.

    listener ── connection ── negotiation ── session: several threads that take turns

What a client sends is not trusted: a connection that breaks the protocol ends, and no other notices.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from vmkeep.disks.nbd_negotiation import negotiate
from vmkeep.disks.nbd_session import Session
from vmkeep.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vmkeep.disks.device import Extent

MOST_CONNECTIONS: Final = 32
"""One more is closed at once. All together take 128 MiB at most: 8 threads each, with 512 KiB each.

Where more than half as many disks are served, it is twice their number: a VM has one for each."""
_PAUSE_S: Final = 0.05

_log = logging.getLogger(__name__)


class Readable(Protocol):
    """A disk that can be served. Safe to use from several threads."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*."""

    def extents_within(self, start: int, length: int) -> Iterator[Extent]:
        """Yield the parts of a range that may hold data, in order, merged."""


class NbdServer:
    """A server that listens. Made by `serving`.

    Args:
        exports: the disks by name; the name "" is what a client gets that names none.
    """

    def __init__(self, listener: socket.socket, exports: Mapping[str, Readable]) -> None:
        self._listener = listener
        self._exports = exports
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._over = False
        self._most = max(MOST_CONNECTIONS, 2 * len(exports))
        self._full = False
        self._thread = threading.Thread(target=self._accept, name="nbd", daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        with self._lock:
            return len(self._connections)

    def close(self) -> None:
        """Listen no more, end all connections, and return when their threads have ended."""
        with self._lock:
            self._over = True
            threads = list(self._connections.values())
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._thread, *threads):
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._over:
                    return
                time.sleep(_PAUSE_S)  # it was gone before it was accepted, or too many files are open
                continue
            thread = threading.Thread(target=self._serve, args=(connection,), name="nbd-client", daemon=True)
            with self._lock:
                if self._over or self._is_full():
                    connection.close()
                    continue
                try:
                    thread.start()
                except RuntimeError as error:  # there can be no more threads now
                    _log.warning("an NBD client is sent away: %s", error)
                    connection.close()
                    continue
                self._connections[connection] = thread

    def _is_full(self) -> bool:
        """Tell whether all connections are taken; the log says once that they are."""
        full = len(self._connections) >= self._most
        if full and not self._full:
            _log.warning("all %d connections are taken: NBD clients are sent away", self._most)
        self._full = full
        return full

    def _serve(self, connection: socket.socket) -> None:
        try:
            agreed = negotiate(connection, self._exports)
            if agreed is not None:
                Session(connection, agreed, self._exports[agreed.export]).run()
        except (OSError, EOFError):
            pass  # it went away
        except ValueError as error:
            _log.info("an NBD client broke the protocol: %s", error)
        finally:
            connection.close()
            with self._lock:
                self._connections.pop(connection, None)


@contextlib.contextmanager
def serving(
    exports: Mapping[str, Readable], address: Path | tuple[str, int], *, mode: int = 0o600
) -> Iterator[NbdServer]:
    """Serve *exports* for the length of a `with` block.

    Args:
        address: a unix socket, which is removed at the end; or host and port.
        mode: who may connect to the socket: this user only, by default.

    Raises:
        InputError: the address cannot be listened on.
    """
    listener = _listen(address, mode)
    server = NbdServer(listener, exports)
    try:
        yield server
    finally:
        server.close()
        if not isinstance(address, tuple):
            address.unlink(missing_ok=True)


def _listen(address: Path | tuple[str, int], mode: int) -> socket.socket:
    if isinstance(address, tuple):
        listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    else:
        listener = socket.socket(socket.AF_UNIX)
    try:
        if isinstance(address, tuple):
            listener.bind(address)
        else:
            _remove_left(address)
            os.fchmod(listener.fileno(), mode)  # which Linux gives the file when it makes it
            listener.bind(str(address))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise InputError(f"cannot serve NBD at {address}: {error.strerror or error}") from error
    return listener


def _remove_left(path: Path) -> None:
    """Remove the socket of a server that was killed."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as asking:
            try:
                asking.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
