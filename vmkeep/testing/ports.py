"""Free ports of the loopback, for servers that are told theirs before they start.

They lie below those that the kernel gives to connections: none is taken by one before the server listens, and
nobody who asks again and again whether it does ends up connected to themselves.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path
from typing import Final

_FIRST: Final = 10_000
_ENOUGH: Final = 1000


def free_port() -> int:
    """Return a port that nobody listens on."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return different ones."""
    # Not the module `random`: tests seed it, and would draw the same in two processes.
    choose, below = secrets.SystemRandom(), _connections()
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            port = choose.randrange(_FIRST, below) if below - _FIRST > _ENOUGH else 0
            one = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # it is taken
                one.bind(("127.0.0.1", port))
                found.append(int(one.getsockname()[1]))
    return found


def _connections() -> int:
    """Return the first port that a connection may get. See: Linux, ip-sysctl, ip_local_port_range."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
