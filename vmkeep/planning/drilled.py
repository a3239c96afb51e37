"""What a drill found out: who came back, and how long that took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vmkeep.units import format_duration


@dataclass(frozen=True, slots=True)
class DrilledVM:
    """What became of one VM."""

    vm: str
    session: str
    """Its recovery point."""
    passed: bool
    booted: bool
    """Whether it was started; one that cannot be is checked as it lies."""
    seconds: float | None
    """From the begin of the drill until it passed its gates."""
    checks: int = 0
    """How much of it was found to be right: gates, or what was looked at in images; 0: nothing can be."""
    reason: str = ""
    """Why it did not."""
    skipped_gates: tuple[str, ...] = ()
    """The gates that a drill cannot try, with the reason."""


@dataclass(frozen=True, slots=True)
class DrilledService:
    """What became of one service: its VMs and all that they depend on."""

    name: str
    vms: tuple[str, ...]
    seconds: float | None
    """From the begin of the drill until all of them had passed their gates; `None`: one did not."""
    rto: float | None
    """Seconds that its recovery may take."""

    @property
    def verdict(self) -> str:
        """`met`, `missed`, `failed`, or `passed` where no objective is declared."""
        if self.seconds is None:
            return "failed"
        if self.rto is None:
            return "passed"
        return "met" if self.seconds <= self.rto else "missed"


@dataclass(frozen=True, slots=True)
class DrillResult:
    """What a drill found out."""

    vms: tuple[DrilledVM, ...]
    services: tuple[DrilledService, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """The services that came back, and too late."""
        return tuple(one.name for one in self.services if one.verdict == "missed")

    @property
    def verdict(self) -> str:
        """`passed`, `missed objective`, or `failed`."""
        if not all(one.passed for one in self.vms):
            return "failed"
        return "missed objective" if self.missed else "passed"

    @property
    def sentence(self) -> str:
        """What people and automations are told, such as `shop took 2m, may take 1m`."""
        late = [one for one in self.services if one.verdict == "missed"]
        told = [
            f"{one.name} took {format_duration(one.seconds or 0)}, may take {format_duration(one.rto or 0)}"
            for one in late
        ]
        lost = [one.vm for one in self.vms if not one.passed]
        told += [f"not proven: {', '.join(lost)}"] if lost else []
        return "; ".join([self.verdict, *told])

    def record(self) -> dict[str, Any]:
        """Return it as the repository keeps it; times in seconds."""
        return {
            "verdict": self.verdict,
            "vms": {one.vm: {key: _plain(value) for key, value in asdict(one).items() if key != "vm"}
                    for one in self.vms},
            "services": {
                one.name: {
                    "vms": list(one.vms), "seconds": one.seconds, "rto": one.rto, "verdict": one.verdict,
                }
                for one in self.services
            },
        }  # fmt: skip


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
