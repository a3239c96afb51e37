"""An HTTP proxy on loopback that lets requests to a real S3 server go wrong, as networks and services do.

    client -> proxy -> server     each request is numbered, from 1, in the order in which its head arrived

The proxy knows only as much of HTTP/1.1 as S3 clients use: lengths, chunks, `Expect: 100-continue`.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from vmkeep.testing.faults import flip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedIOBase
    from typing import Self


class NetworkFault(StrEnum):
    """What goes wrong with a request."""

    REFUSED = "the connection is reset before the request reaches the server"
    LOST = "the request is carried out, and the connection is reset before the answer"
    HANGING = "nothing ever answers"
    FAILING = "500 InternalError"
    SLOW_DOWN = "503 SlowDown"
    EXPIRED = "403 ExpiredToken"
    SKEWED = "403 RequestTimeTooSkewed"
    CUT = "the connection is reset in the middle of the answer's body"
    FLIPPED = "one bit of the answer's body is wrong"


_ANSWERS: Final = {
    NetworkFault.FAILING: (500, "InternalError"),
    NetworkFault.SLOW_DOWN: (503, "SlowDown"),
    NetworkFault.EXPIRED: (403, "ExpiredToken"),
    NetworkFault.SKEWED: (403, "RequestTimeTooSkewed"),
}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, in the order in which they came."""

    number: int
    """From 1."""
    verb: str
    """`PUT`, `GET`, `HEAD` or `DELETE`."""
    path: str
    """With its query."""


@dataclass(frozen=True, slots=True)
class _Message:
    """A request or an answer."""

    head: bytes
    body: bytes


class FaultProxy:
    """A running proxy. Made by `fault_proxy`."""

    def __init__(self, port: int) -> None:
        self.endpoint_url = f"http://127.0.0.1:{port}"
        self.requests: list[HttpRequest] = []
        self.fault: Callable[[HttpRequest], NetworkFault | None] = lambda _request: None
        """Told each request; returns what goes wrong with it, or `None`. May be replaced at any time."""
        self._lock = threading.Lock()
        self.over = threading.Event()

    def number(self, head: bytes) -> HttpRequest:
        """Count a request."""
        verb, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        with self._lock:
            request = HttpRequest(len(self.requests) + 1, verb, path)
            self.requests.append(request)
        return request


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy in front of the server at the URL *upstream*; it has ended on return."""
    target = urlsplit(upstream)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), _Upstream(str(target.hostname), target.port or 80) as server:
                while _pass_on(self.connection, self.rfile, server, proxy):
                    pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        proxy = FaultProxy(listener.server_address[1])
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.over.set()
            listener.shutdown()
            thread.join()


class _Upstream:
    """A connection to the server."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=60)
        self._file = self._socket.makefile("rb")

    def ask(self, request: _Message) -> _Message | None:
        self._socket.sendall(request.head + request.body)
        return _read(self._file, headless=request.head.startswith(b"HEAD "))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


def _pass_on(client: socket.socket, incoming: BufferedIOBase, server: _Upstream, proxy: FaultProxy) -> bool:
    """Serve one request; tell whether the connection can serve another."""
    head = _head(incoming)
    if head is None:
        return False
    if b"100-continue" in head.lower():
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = b"".join(
            line for line in head.splitlines(keepends=True) if not line.lower().startswith(b"expect:")
        )
    request = proxy.number(head)
    fault = proxy.fault(request)
    message = _Message(head, _body(incoming, head))
    answer = None
    if fault in _ANSWERS:
        answer = _refusal(*_ANSWERS[fault], bodiless=request.verb == "HEAD")
    elif fault is NetworkFault.HANGING:
        proxy.over.wait(30)
    elif fault is not NetworkFault.REFUSED:
        answer = server.ask(message)
    if answer is None or fault is NetworkFault.LOST:
        return _reset(client)
    half = len(answer.body) // 2
    if fault is NetworkFault.CUT and answer.body:
        client.sendall(answer.head + answer.body[:half])
        return _reset(client)
    client.sendall(answer.head + (flip(answer.body, half) if fault is NetworkFault.FLIPPED else answer.body))
    return True


def _refusal(status: int, code: str, *, bodiless: bool) -> _Message:
    body = b"" if bodiless else f"<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return _Message(head.encode(), body)


def _reset(client: socket.socket) -> bool:
    # With no time to linger, closing sends a reset.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    return False


def _read(stream: BufferedIOBase, *, headless: bool) -> _Message | None:
    """Return the next answer; *headless*: it has no body, whatever it says."""
    head = _head(stream)
    if head is None:
        return None
    return _Message(head, b"" if headless else _body(stream, head))


def _head(stream: BufferedIOBase) -> bytes | None:
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return None


def _body(stream: BufferedIOBase, head: bytes) -> bytes:
    lower = head.lower()
    if b"\r\ntransfer-encoding: chunked" in lower:
        return _chunks(stream)
    _, found, rest = lower.partition(b"\r\ncontent-length:")
    return stream.read(int(rest.split(b"\r\n", 1)[0])) if found else b""


def _chunks(stream: BufferedIOBase) -> bytes:
    """Return a body in chunks, as it came."""
    parts = []
    while True:
        line = stream.readline()
        size = int(line.split(b";")[0], 16)
        parts += [line, stream.read(size + 2)]
        if size == 0:
            return b"".join(parts)
