"""The connection to a libvirt daemon, and what its errors mean for the operator."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final

import libvirt

from vmkeep.errors import (
    AccessError,
    GuestError,
    InputError,
    NotFoundError,
    SourceError,
    TemporaryError,
    VmkeepError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# A daemon that answers no ping of the connection for so long is taken for dead, and calls end.
_PING_EVERY_S: Final = 5
_PINGS_LOST: Final = 6
_GONE: Final = {
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_NO_STORAGE_POOL,
    libvirt.VIR_ERR_NO_STORAGE_VOL,
    libvirt.VIR_ERR_NO_NETWORK,
    libvirt.VIR_ERR_NO_DOMAIN_BACKUP,
    libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT,
    libvirt.VIR_ERR_NO_DOMAIN_METADATA,
}
_DENIED: Final = {
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_OPERATION_DENIED,
}
_AWAY: Final = {
    libvirt.VIR_ERR_RPC,
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_OPERATION_TIMEOUT,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    libvirt.VIR_ERR_AGENT_UNSYNCED,
}
_LOST_WORDS: Final = ("client socket is closed", "connection closed", "keepalive timeout", "End of file")

_shared: Final[dict[str, Connection]] = {}
_shared_lock: Final = threading.Lock()


class Connection:
    """A connection, made when first used, and made again after it was lost. Safe for several threads."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._open: libvirt.virConnect | None = None

    def get(self) -> libvirt.virConnect:
        """Return the open connection.

        Raises:
            TemporaryError: the daemon does not answer.
            AccessError: it does not let us in.
        """
        with self._lock:
            if self._open is not None and not _alive(self._open):
                with contextlib.suppress(libvirt.libvirtError):
                    self._open.close()
                self._open = None
            if self._open is None:
                _run_event_loop()
                with translated(f"libvirt at {self.uri}"):
                    self._open = libvirt.open(self.uri)
                    # Some transports do not have it; calls then end when the transport does.
                    with contextlib.suppress(libvirt.libvirtError):
                        self._open.setKeepAlive(_PING_EVERY_S, _PINGS_LOST)
            return self._open

    def domain(self, name: str) -> libvirt.virDomain:
        """Return a domain.

        Raises:
            NotFoundError: there is none of this name.
        """
        with translated(f"VM {name}"):
            return self.get().lookupByName(name)

    def find_domain(self, name: str) -> libvirt.virDomain | None:
        """Return a domain, or None."""
        try:
            return self.domain(name)
        except NotFoundError:
            return None


def is_remote(uri: str) -> bool:
    """Tell whether a URI leads to another host: it names one."""
    return not uri.partition("://")[2].startswith("/")


def shared(uri: str) -> Connection:
    """Return the connection to *uri* that all of this process use."""
    with _shared_lock:
        return _shared.setdefault(uri, Connection(uri))


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise what a libvirt error means for the operator; *what* was being dealt with.

    Raises:
        NotFoundError: it is not there.
        AccessError: it is not allowed.
        TemporaryError: the daemon or the guest agent does not answer.
        InputError: libvirt does not take what was asked for.
        SourceError: anything else.
    """
    try:
        yield
    except libvirt.libvirtError as error:
        raise meaning(error, what) from error


def meaning(error: libvirt.libvirtError, what: str) -> VmkeepError:
    """Return the error of vmkeep that says what *error* means."""
    code, words = error.get_error_code(), error.get_error_message() or str(error)
    text = f"{what}: {words}"
    if code in _GONE:
        return NotFoundError(text)
    if code in _DENIED or "Permission denied" in words:
        return AccessError(f"{text}; may this user use libvirt? (group libvirt, or the right URI)")
    unreachable = error.get_error_domain() in {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}
    if code in _AWAY or unreachable or any(lost in words for lost in _LOST_WORDS):
        return TemporaryError(text)
    if code in {libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_ERR_XML_DETAIL, libvirt.VIR_ERR_CONFIG_UNSUPPORTED}:
        return InputError(text)
    if error.get_error_domain() == libvirt.VIR_FROM_QEMU and "agent command" in words:
        return GuestError(text)
    return SourceError(text)


def _alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


_loop: threading.Thread | None = None
_loop_lock: Final = threading.Lock()


def _run_event_loop() -> None:
    """Start the thread that answers and sends pings, once in this process."""
    global _loop  # noqa: PLW0603  (libvirt has one event loop for the process)
    with _loop_lock:
        if _loop is not None:
            return
        # Every error is raised, too; libvirt would also print it.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        _loop = threading.Thread(target=_turn, name="libvirt-events", daemon=True)
        _loop.start()


def _turn() -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()
