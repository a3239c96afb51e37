"""What is known from outside when a plan is made: sizes, rates, abilities. All of it is optional."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast things go, for estimates; bytes a second unless said otherwise."""

    read: float = 200 * MiB
    """Reading and packing a component."""
    upload: float = 100 * MiB
    restore: float = 200 * MiB
    verify: float = 200 * MiB
    call: float = 1.0
    """Seconds of a step that moves no data."""
    boot: float = 60.0
    """Seconds until a started VM passes its health checks."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts for estimates and for the shape of a plan."""

    allocated: Mapping[str, int] = field(default_factory=dict)
    """Bytes that hold data, by `vm/disk`; otherwise a disk counts with its declared size."""
    saved: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the last recovery point, by `vm/component`; better than `allocated` where known."""
    new: Mapping[str, int] = field(default_factory=dict)
    """Bytes that the last backup had to upload, by `vm/component`; otherwise all count as new."""
    powered_off: frozenset[str] = frozenset()
    """Hypervisors whose driver cannot start VMs."""
    hosts: Mapping[str, str] = field(default_factory=dict)
    """The host that each VM runs on."""
    rates: Rates = Rates()
