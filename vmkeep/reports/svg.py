"""SVG by hand: the few shapes that the pictures need, readable on GitHub and without any font installed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FONT: Final = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK: Final = "#1f2937"
SOFT: Final = "#6b7280"
LINE: Final = "#94a3b8"

_NARROW: Final = frozenset("iljtfrI.,:;'|!()[]/- ")
_WIDE: Final = frozenset("mwMWQO@%")


def text_width(text: str, size: float) -> float:
    """Return about how wide *text* is in a sans-serif font of *size* pixels; rather too much."""
    # Python 3.12 adds up better than 3.11 does: so that pictures are the same in all releases.
    return size * math.fsum(
        0.38 if letter in _NARROW else 0.95 if letter in _WIDE else 0.64 for letter in text
    )


def shortened(text: str, size: float, width: float) -> str:
    """Return *text*, cut to fit into *width* pixels."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def document(width: float, height: float, title: str, body: Iterable[str]) -> str:
    """Return a whole SVG on a white ground, so that it is readable on dark pages too."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" font-family={quoteattr(FONT)}>'
    )
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0.5 0.8 L7 4 L0.5 7.2" fill="none" stroke="{LINE}" stroke-width="1.4" '
        'stroke-linecap="round" stroke-linejoin="round"/></marker></defs>'
    )
    ground = rect(0, 0, width, height, fill="#ffffff", radius=12)
    return "\n".join([head, f"<title>{escape(title)}</title>", arrow, ground, *body, "</svg>", ""])


def rect(  # noqa: PLR0913  # x, y, width, height are one thing
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    fill: str,
    stroke: str = "none",
    radius: float = 8,
    dashed: bool = False,
) -> str:
    """Return a rectangle with round corners."""
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" '
        f'fill="{fill}" stroke="{stroke}"{dash}/>'
    )


def words(  # noqa: PLR0913  # a text and where it stands are one thing
    x: float,
    y: float,
    text: str,
    *,
    size: float = 12,
    fill: str = INK,
    bold: bool = False,
    anchor: str = "start",
) -> str:
    """Return a line of text whose baseline is at *y*."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )


def curve(points: Sequence[tuple[float, float]], *, faint: bool = False, dashed: bool = False) -> str:
    """Return an arrow through *points*, level at each of them; see `Layout.routes`."""
    (x, y), *rest = points
    path = [f"M{x:.1f} {y:.1f}"]
    for number, (to_x, to_y) in enumerate(rest):
        if number % 2:
            path.append(f"L{to_x:.1f} {to_y:.1f}")
        else:
            bend = (x + to_x) / 2
            path.append(f"C{bend:.1f} {y:.1f} {bend:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}")
        x, y = to_x, to_y
    look = f'stroke="{LINE}" stroke-width="{1 if faint else 1.6}"'
    look += ' opacity="0.55"' if faint else ""
    look += ' stroke-dasharray="4 4"' if dashed else ""
    return f'<path d="{" ".join(path)}" fill="none" {look} marker-end="url(#arrow)"/>'


def grouped(tooltip: str, parts: Iterable[str]) -> str:
    """Return *parts* as one thing with a tooltip."""
    return "\n".join(["<g>", f"<title>{escape(tooltip)}</title>", *parts, "</g>"])
