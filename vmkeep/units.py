"""Sizes in bytes, durations in seconds: read from and written for people."""

from __future__ import annotations

import re
from typing import Final

KiB: Final = 1024
MiB: Final = 1024 * KiB
GiB: Final = 1024 * MiB
TiB: Final = 1024 * GiB

_SIZES: Final = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "K": KiB, "M": MiB, "G": GiB, "T": TiB, "KIB": KiB, "MIB": MiB, "GIB": GiB, "TIB": TiB,
}  # fmt: skip
_DURATIONS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_NUMBER: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Return the bytes in *text*, such as ``10GiB``, ``512M`` (binary) or ``1.5GB`` (decimal).

    Raises:
        ValueError: no unit, an unknown unit, or not a whole number of bytes.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a number and a unit, for example 10GiB")
    number, unit = match.groups()
    factor = _SIZES.get(unit.upper())
    if factor is None:
        known = "B, KiB, MiB, GiB, TiB, KB, MB, GB or TB"
        what = f"has the unknown unit {unit!r}" if unit else "has no unit"
        raise ValueError(f"{text!r} {what}: write {known}, for example 10GiB")
    size = float(number) * factor
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def format_size(size: float) -> str:
    """Return *size* (bytes) with three digits and a binary unit, such as ``1.50 GiB``."""
    for unit, name in ((TiB, "TiB"), (GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if abs(size) >= unit:
            return (
                f"{size / unit:.{2 if abs(size) < 10 * unit else 1 if abs(size) < 100 * unit else 0}f} {name}"
            )
    return f"{size:.0f} B"


def exact_size(size: int) -> str:
    """Return *size* (bytes) in the largest binary unit that says it exactly, such as ``10GiB``.

    `parse_size` reads it back.
    """
    for unit, name in ((TiB, "TiB"), (GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{size}B"


def parse_percentage(text: str) -> float:
    """Return the share (0 to 1) in *text*, such as ``5%``.

    Raises:
        ValueError: no number with ``%`` behind it, or more than ``100%``.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text.strip())
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{text!r} is not a percentage: write a number up to 100 and %, for example 5%")
    return float(match[1]) / 100


def parse_duration(text: str) -> float:
    """Return the seconds in *text*, such as ``10s``, ``1.5h`` or ``14d``.

    Raises:
        ValueError: no unit or an unknown one.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write a number and a unit, for example 10s")
    number, unit = match.groups()
    factor = _DURATIONS.get(unit)
    if factor is None:
        what = f"has the unknown unit {unit!r}" if unit else "has no unit"
        raise ValueError(f"{text!r} {what}: write ms, s, m, h, d or w, for example 10s")
    return float(number) * factor


def format_duration(seconds: float) -> str:
    """Return *seconds* in the largest two fitting units, such as ``1h 05m``, ``12.3s`` or ``340ms``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h {minutes:02d}m"
    return f"{hours // 24}d {hours % 24:02d}h"
