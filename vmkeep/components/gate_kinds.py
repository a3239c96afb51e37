"""One try of a health gate, by kind."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from vmkeep.components import inside, web
from vmkeep.components.echo import echo
from vmkeep.components.query import returns_a_row
from vmkeep.disks import tools
from vmkeep.errors import GuestError, TemporaryError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkeep.components.subject import Subject
    from vmkeep.fleet.model import HealthCheck


def called(check: HealthCheck) -> str:
    """Return how messages call a check, such as `tcp 5432`."""
    value = getattr(check, check.kind)
    if check.sql is not None:
        return f"sql {check.sql.database}: {check.sql.query}"
    return check.kind if value is True else f"{check.kind} {value}"


def attempt(subject: Subject, check: HealthCheck, *, timeout_s: float) -> str:
    """Try once; return what was found to be right.

    Raises:
        VmkeepError: it is not right, or not yet.
        UnsupportedError: it cannot be tried.
    """
    if check.agent is not None:
        subject.guest().ping(timeout_s=timeout_s)
        return "its inside answers"
    if check.kind in {"ping", "tcp", "http"}:
        return _inside(subject, check, timeout_s) if subject.isolated else _outside(subject, check, timeout_s)
    if check.exec is not None:
        return _exec(subject, check.exec, timeout_s)
    if check.sql is not None:
        returns_a_row(subject.guest(), check.sql, timeout_s=timeout_s)
        return f"database {check.sql.database} answers"
    raise UnsupportedError(
        f"VM {subject.name}: health check {check.kind} is for VMs that stay powered off; remove it"
    )


def _outside(subject: Subject, check: HealthCheck, timeout_s: float) -> str:
    if check.tcp is not None:
        port = check.tcp
        address = _first(subject, lambda host, left: _connect(host, port, left), timeout_s)
        return f"{address} accepts connections on port {port}"
    if check.http is not None:
        return _http(subject, check.http, timeout_s)
    address = _first(subject, lambda host, left: echo(host, timeout_s=left), timeout_s)
    return f"{address} answers a ping"


def _inside(subject: Subject, check: HealthCheck, timeout_s: float) -> str:
    if check.tcp is not None:
        return inside.listens(subject, check.tcp, timeout_s=timeout_s)
    if check.http is not None:
        return inside.fetches(subject, check.http, timeout_s=timeout_s)
    subject.guest().ping(timeout_s=timeout_s)
    return "not applicable: ping: its network is isolated from this host; its inside answers"


def _first(subject: Subject, ask: Callable[[str, float], object], timeout_s: float) -> str:
    """Return the first of the VM's addresses that answers.

    Raises:
        TemporaryError: none does; carries each one's reason.
    """
    addresses = subject.addresses()
    reasons = []
    for address in addresses:
        try:
            ask(address, max(timeout_s / len(addresses), 1.0))
        except TemporaryError as error:
            reasons.append(str(error))
        else:
            return address
    raise TemporaryError("; ".join(reasons) or "its guest agent tells no address yet")


def _connect(host: str, port: int, timeout_s: float) -> None:
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise TemporaryError(f"{host} does not accept a connection on port {port}: {reason}") from error


def _http(subject: Subject, url: str, timeout_s: float) -> str:
    """Ask where the name leads, or for a VM under another name the VM itself."""
    if subject.original:
        _fetch(url, None, timeout_s)
        return f"{url} answers"
    return f"{url} answers at {_first(subject, lambda host, left: _fetch(url, host, left), timeout_s)}"


def _fetch(url: str, at: str | None, timeout_s: float) -> None:
    found = web.status(url, at=at, timeout_s=timeout_s)
    if found >= 400:
        raise TemporaryError(f"{url}{f' at {at}' if at else ''} answers with status {found}")


def _exec(subject: Subject, command: str, timeout_s: float) -> str:
    done = subject.guest().run(["sh", "-c", command], timeout_s=timeout_s)
    if done.code != 0:
        words = tools.last_words((done.err or done.out).decode(errors="replace"))
        raise GuestError(f"it ended with {done.code}: {words}")
    return f"{command!r} ended with 0"
