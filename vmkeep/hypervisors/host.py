"""How much room this host has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vmkeep.hypervisors.base import Capacity, Storage
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Mapping


def capacity(folders: Mapping[str, Path]) -> Capacity:
    """Return this host's processors and memory, and the room in *folders*, by name.

    See: proc(5), /proc/meminfo.
    """
    values = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        values[key] = int(value.split()[0]) * KiB
    storages = []
    for name, folder in folders.items():
        there = next(one for one in (folder, *folder.parents) if one.exists())
        usage = shutil.disk_usage(there)
        storages.append(Storage(name, usage.total, usage.free))
    return Capacity(os.cpu_count() or 1, values["MemTotal"], values["MemAvailable"], tuple(storages))
