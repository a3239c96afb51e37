"""Which process made a thing that outlives it, and whether that process is gone.

    4711 1234567 0b9d... 4026531836 host1        process, its start, boot of the host, its id space, host

Only who can see that a process is gone says so: not of one in another container, nor of one on another host.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from vmkeep.disks import scratch


def me() -> str:
    """Return what says that this process made a thing."""
    pid = os.getpid()
    return f"{pid} {scratch.started(pid)} {_boot()} {_id_space()} {platform.node()}"


def is_gone(maker: str) -> bool:
    """Tell whether a process is gone for certain."""
    try:
        pid, start, boot, space, host = maker.split(" ", 4)
        if host != platform.node():
            return False
        if boot != _boot():
            return bool(boot and _boot())  # the host was started anew since
        return space == _id_space() and scratch.started(int(pid)) != int(start)
    except ValueError:  # it does not say
        return False


def is_at_work(maker: str) -> bool:
    """Tell whether a process is seen to run."""
    seen = maker.split(" ", 2)[2:] == me().split(" ", 2)[2:]
    return seen and not is_gone(maker)


def described(maker: str) -> str:
    """Return a process in words."""
    pid, _, rest = maker.partition(" ")
    host = rest.rpartition(" ")[2]
    return f"process {pid} of host {host}" if host else "a process that is not known"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _id_space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""
