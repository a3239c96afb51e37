"""Which host each VM is restored to: packing of vectors with affinity, as balanced as it can be.

Memory is what a host runs out of; processors are shared. So memory is a bound, and both are load. The best
placement is the one whose fullest host is the least full. It is searched depth first, the largest VM first
and the emptiest host first, and a branch is left as soon as a host in it is as full as in the best so far
(see Martello, Toth: Knapsack Problems, chapter 8, on branch and bound for packing).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import networkx as nx

from vmkeep.errors import InputError
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_MOST: Final = 10_000
"""Branches that are looked into, about a second's work; few VMs are searched to the end long before."""


@dataclass(frozen=True, slots=True)
class Host:
    """What can run VMs, and how much room it has."""

    name: str
    cpus: int
    memory: int
    """Bytes in all."""
    free: int
    """Bytes that VMs can have."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM that needs a host."""

    name: str
    cpus: int
    memory: int
    """Bytes."""
    near: frozenset[str] = frozenset()
    """Other guests that it is to be with."""
    away_from: frozenset[str] = frozenset()
    """Other guests that it must not be with."""
    never: Mapping[str, str] = field(default_factory=dict)
    """Hosts that it cannot go to, each with the reason."""


@dataclass(frozen=True, slots=True)
class _Lot:
    """Guests that go to one host together."""

    guests: tuple[Guest, ...]
    cpus: int
    memory: int

    @property
    def names(self) -> frozenset[str]:
        return frozenset(guest.name for guest in self.guests)

    @property
    def away_from(self) -> frozenset[str]:
        return frozenset().union(*(guest.away_from for guest in self.guests))


@dataclass(slots=True)
class _Filled:
    """A host during the search."""

    host: Host
    cpus: int = 0
    memory: int = 0
    lots: list[_Lot] = field(default_factory=list)

    def load_with(self, lot: _Lot) -> float:
        """Return the share of it that is taken with *lot*, of what is scarcest; 1: all of it."""
        taken = self.host.memory - self.host.free + self.memory + lot.memory
        return max(taken / max(1, self.host.memory), (self.cpus + lot.cpus) / max(1, self.host.cpus))

    def takes(self, lot: _Lot) -> bool:
        """Tell whether there is room for *lot*, and nothing that it must be away from."""
        room = self.memory + lot.memory <= self.host.free
        return room and not any(_apart(lot, other) for other in self.lots)

    def put(self, lot: _Lot) -> None:
        self.cpus, self.memory = self.cpus + lot.cpus, self.memory + lot.memory
        self.lots.append(lot)

    def take_back(self, lot: _Lot) -> None:
        self.cpus, self.memory = self.cpus - lot.cpus, self.memory - lot.memory
        self.lots.remove(lot)


def place(guests: Sequence[Guest], hosts: Sequence[Host]) -> dict[str, str]:
    """Return the host of each guest, by their names.

    Raises:
        InputError: they cannot all be placed, or in a large fleet no way was found; says what is short.
    """
    lots = sorted(_lots(guests), key=lambda lot: (-lot.memory, -lot.cpus))
    filled = [_Filled(host) for host in hosts]
    for lot in lots:
        _require_one(lot, filled)
    best = _Search(lots, filled).best
    if best is None:
        needed = sum(guest.memory for guest in guests)
        free = ", ".join(f"{host.name} {format_size(host.free)}" for host in hosts)
        raise InputError(
            f"no way was found to put {len(guests)} VMs, which need {format_size(needed)} of memory, on "
            f"hypervisors that have {free}, and to keep what is near and away_from: restore fewer at once, "
            "add a hypervisor, or name one alone, which is not asked for room"
        )
    return {guest.name: host for lot, host in zip(lots, best, strict=True) for guest in lot.guests}


class _Search:
    """Finds for each lot a host."""

    def __init__(self, lots: Sequence[_Lot], filled: Sequence[_Filled]) -> None:
        self._lots = lots
        self._filled = filled
        self._left = _MOST
        self._least = float("inf")
        self._chosen: list[str] = []
        self.best: tuple[str, ...] | None = None
        """The hosts' names, in the order of the lots."""
        self._go_on(0.0)

    def _go_on(self, load: float) -> None:
        """Place the next lot; *load* is that of the fullest host so far."""
        if len(self._chosen) == len(self._lots):
            self._least, self.best = load, tuple(self._chosen)
            return
        lot = self._lots[len(self._chosen)]
        for filled in sorted(self._filled, key=lambda one: one.load_with(lot)):
            fuller = max(load, filled.load_with(lot))
            if fuller >= self._least or self._left <= 0:
                return  # all others are fuller still
            if not filled.takes(lot) or _hindrance(lot, filled.host) is not None:
                continue
            self._left -= 1
            filled.put(lot)
            self._chosen.append(filled.host.name)
            self._go_on(fuller)
            self._chosen.pop()
            filled.take_back(lot)


def _lots(guests: Sequence[Guest]) -> Iterator[_Lot]:
    """Yield guests that are near each other as one."""
    together: nx.Graph[str] = nx.Graph()
    by_name = {guest.name: guest for guest in guests}
    together.add_nodes_from(by_name)
    for guest in guests:
        together.add_edges_from((guest.name, other) for other in guest.near if other in by_name)
    for names in nx.connected_components(together):
        lot = tuple(guest for guest in guests if guest.name in names)
        for guest in lot:
            if enemies := guest.away_from & names:
                raise InputError(f"VM {guest.name} is to be near and away from {min(enemies)}")
        yield _Lot(lot, sum(guest.cpus for guest in lot), sum(guest.memory for guest in lot))


def _apart(one: _Lot, other: _Lot) -> bool:
    return bool(one.away_from & other.names or other.away_from & one.names)


def _hindrance(lot: _Lot, host: Host) -> str | None:
    """Say why not even an empty host could take *lot*, or return `None`."""
    if lot.memory > host.free:
        return f"{host.name} has {format_size(host.free)} of memory free"
    return next((guest.never[host.name] for guest in lot.guests if host.name in guest.never), None)


def _require_one(lot: _Lot, filled: Sequence[_Filled]) -> None:
    """Refuse a lot that no host could take though it were alone."""
    reasons = [_hindrance(lot, one.host) for one in filled]
    if None in reasons:
        return
    names, why = " and ".join(sorted(lot.names)), "; ".join(map(str, reasons))
    raise InputError(f"VM {names} ({format_size(lot.memory)} of memory) can be placed nowhere: {why}")
