"""One request to a web address, of which the machine that answers may be another than the name says."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import urllib.parse
from typing import TYPE_CHECKING, Final

from vmkeep.errors import InputError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PORTS: Final = {"http": 80, "https": 443}


def host_of(url: str) -> str:
    """Return the host in a web address.

    Raises:
        InputError: it is none.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise InputError(f"{url!r} is not a web address: write http://HOST/PATH or https://HOST/PATH")
    return parts.hostname


def status(url: str, *, at: str | None = None, timeout_s: float) -> int:
    """Return the status of a GET; redirections are not followed.

    Args:
        at: Ask this address, and not the one that the host's name leads to. What is asked for, and whose
            certificate is expected, stays as in *url*.

    Raises:
        TemporaryError: there was no answer in time, or one that is no HTTP, or the certificate is not valid.
    """
    host = host_of(url)
    parts = urllib.parse.urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    try:
        with _connected(at or host, port, timeout_s) as plain:
            sock = _wrapped(plain, host) if parts.scheme == "https" else plain
            connection = http.client.HTTPConnection(host, port)
            connection.sock = sock
            target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request("GET", target, headers={"Host": parts.netloc.rpartition("@")[2]})
            return connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        words = str(error) or type(error).__name__
        raise TemporaryError(f"{url}{f' at {at}' if at else ''} does not answer: {words}") from error


@contextlib.contextmanager
def _connected(host: str, port: int, timeout_s: float) -> Iterator[socket.socket]:
    """Connect for so long in all: a server that sends a byte now and then does not keep us."""
    with socket.create_connection((host, port), timeout=timeout_s) as sock:
        # Waking a blocked reader needs more than closing.
        def cut() -> None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(timeout_s, cut)
        timer.daemon = True
        timer.start()
        try:
            yield sock
        finally:
            timer.cancel()


def _wrapped(sock: socket.socket, host: str) -> ssl.SSLSocket:
    return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
