"""One ICMP echo, the question of `ping`. See: RFC 792, RFC 4443."""

from __future__ import annotations

import os
import secrets
import socket
import struct
import time
from typing import Final

from vmkeep.errors import TemporaryError, UnsupportedError

_REQUEST: Final = {socket.AF_INET: 8, socket.AF_INET6: 128}
_REPLY: Final = {socket.AF_INET: 0, socket.AF_INET6: 129}
_PROTOCOL: Final = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}


def echo(host: str, *, timeout_s: float) -> None:
    """Return when *host* answered.

    Raises:
        TemporaryError: it did not in time, or cannot be reached.
        UnsupportedError: this user may not ask.
    """
    deadline = time.monotonic() + timeout_s
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)[0]
        with _open(family) as asking:
            token = secrets.token_bytes(16)
            asking.sendto(_packet(_REQUEST[family], token, family), address)
            while True:
                asking.settimeout(max(deadline - time.monotonic(), 0.001))
                answer = asking.recv(4096)
                # A raw socket sees all that comes; the token tells our answer from others'.
                start = answer.find(token) - 8
                if start >= 0 and answer[start] == _REPLY[family]:
                    return
    except TimeoutError as error:
        raise TemporaryError(f"{host} did not answer a ping") from error
    except OSError as error:
        raise TemporaryError(f"{host} cannot be pinged: {error.strerror or error}") from error


def _open(family: socket.AddressFamily) -> socket.socket:
    try:
        return socket.socket(family, socket.SOCK_DGRAM, _PROTOCOL[family])
    except PermissionError:
        pass  # only groups in net.ipv4.ping_group_range may; root may otherwise
    try:
        return socket.socket(family, socket.SOCK_RAW, _PROTOCOL[family])
    except PermissionError as error:
        raise UnsupportedError(
            "this user may not ping: allow it (sysctl net.ipv4.ping_group_range='0 2147483647'), or check tcp"
        ) from error


def _packet(kind: int, token: bytes, family: socket.AddressFamily) -> bytes:
    # For the datagram kind the kernel puts its own identifier and checksum.
    packet = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, 1) + token
    if family == socket.AF_INET6:
        return packet
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total >> 16) + (total & 0xFFFF)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return packet[:2] + struct.pack("!H", checksum) + packet[4:]
