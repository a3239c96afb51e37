"""Files of vSphere over HTTPS: whole ones out of it, and into it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

from vmkeep.errors import AccessError, SourceError, UnsupportedError
from vmkeep.hypervisors.vsphere.faults import translated
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from vmkeep.hypervisors.vsphere.connection import Address, Connection

_TIMEOUT_S: Final = 120.0
_PIECE: Final = MiB
_SHA256_DIGITS: Final = 64
_STREAM: Final = "application/x-vnd.vmware-streamVmdk"


@dataclass(frozen=True, slots=True)
class Remote:
    """A file that vCenter or a host offers, or takes."""

    address: Address
    """Of vCenter."""
    url: str
    thumbprint: str = ""
    """Hash of the certificate, which vCenter told: hosts have certificates of its own authority."""
    cookie: str = ""
    """Stands for the login."""

    @property
    def asked(self) -> str:
        """What a request asks for."""
        parts = urlsplit(self.url)
        return urlunsplit(("", "", parts.path, parts.query, ""))

    def connect(self) -> http.client.HTTPSConnection:
        """Open a connection.

        Raises:
            AccessError: the certificate is not the one that is trusted.
            UnsupportedError: it is not HTTPS.
            TemporaryError: there is no answer.
        """
        parts = urlsplit(self.url)
        if parts.scheme != "https" or not parts.hostname:
            raise UnsupportedError(
                f"vSphere at {self.address} offers files by {parts.scheme or 'nothing'}, and not by https"
            )
        context = self.address.context()
        if self.thumbprint:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        line = http.client.HTTPSConnection(
            parts.hostname, parts.port or 443, timeout=_TIMEOUT_S, context=context
        )
        with translated(parts.hostname):
            line.connect()
        if self.thumbprint:
            wanted = self.thumbprint.replace(":", "").lower()
            kind = "sha256" if len(wanted) == _SHA256_DIGITS else "sha1"
            shown = hashlib.new(kind, line.sock.getpeercert(binary_form=True) or b"").hexdigest()
            if shown != wanted:
                line.close()
                raise AccessError(
                    f"{parts.hostname} shows another certificate than vSphere at {self.address} says that it "
                    "has: nothing was sent"
                )
        return line

    def download(self, path: Path, *, what: str, progress: Callable[[int], None]) -> None:
        """Save it as a file.

        Raises:
            SourceError: the server does not give it.
            TemporaryError: the connection dropped.
        """
        with contextlib.closing(self.connect()) as line, translated(what):
            line.request("GET", self.asked, headers={"Cookie": self.cookie})
            answer = line.getresponse()
            _require(answer, {200}, what)
            with path.open("wb") as file:
                while data := answer.read(_PIECE):
                    file.write(data)
                    progress(len(data))

    def upload(self, pieces: Iterable[bytes], *, what: str, progress: Callable[[int], None]) -> None:
        """Send a streamOptimized vmdk, whose length is not known before its end.

        Raises:
            SourceError: the server does not take it.
            TemporaryError: the connection dropped.
        """

        def watched() -> Iterator[bytes]:
            for piece in pieces:
                yield piece
                progress(len(piece))

        with contextlib.closing(self.connect()) as line, translated(what):
            headers = {"Cookie": self.cookie, "Content-Type": _STREAM, "Transfer-Encoding": "chunked"}
            line.request("POST", self.asked, body=watched(), headers=headers, encode_chunked=True)
            _require(line.getresponse(), {200, 201}, what)


def leased(connection: Connection, url: str, thumbprint: str | None) -> Remote:
    """Return the file of a lease; a host called ``*`` is the one that we are connected to."""
    address = connection.address
    parts = urlsplit(url)
    if parts.netloc.partition(":")[0] == "*":
        url = urlunsplit(parts._replace(netloc=address.netloc))
    # The session is nobody's business but vCenter's: a host knows the lease by its URL.
    cookie = connection.cookie if urlsplit(url).hostname == address.host.lower() else ""
    return Remote(address, url, thumbprint or "", cookie)


def _require(answer: http.client.HTTPResponse, codes: set[int], what: str) -> None:
    if answer.status not in codes:
        words = answer.read(300).decode("utf-8", "replace").strip() or "no reason"
        raise SourceError(f"{what}: the server answers {answer.status} {answer.reason}: {words}")
