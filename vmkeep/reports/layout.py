"""Where the boxes of a graph lie: in columns, each edge from left to right, few crossings.

The four steps of Sugiyama's method: columns by the longest path, points to pass for edges that skip
columns, an order in each column by barycentres, and heights that pull neighbours level.
See: Sugiyama, Tagawa, Toda, "Methods for Visual Understanding of Hierarchical System Structures", 1981.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Final

import networkx as nx

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SWEEPS: Final = 12
_PASSING: Final = 14.0
"""Height kept free for an edge that passes a column."""


@dataclass(frozen=True, slots=True)
class Box:
    """A node to be placed; sizes in pixels."""

    width: float
    height: float
    together: str = ""
    """Boxes of a column with the same word here lie next to each other."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a box lies: its upper left corner and its size, in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """The height of its middle line."""
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes and edges in the plane, from (0, 0) to (width, height)."""

    spots: Mapping[str, Spot]
    routes: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]
    """The points of each edge, an even number: it is level from each second point to the next."""
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class _Dummy:
    """A point that the edge from *source* to *target* passes in a column between."""

    source: str
    target: str
    column: int


_Item = str | _Dummy


def layered(
    boxes: Mapping[str, Box], edges: Sequence[tuple[str, str]], *, column_gap: float, row_gap: float
) -> Layout:
    """Place *boxes* so that every edge goes to the right; boxes without an edge lie in rows below."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(boxes)
    graph.add_edges_from(edges)
    alone = [name for name in boxes if graph.degree(name) == 0]
    graph.remove_nodes_from(alone)
    columns, chains = _columns(graph)
    columns = _ordered(columns, chains, boxes)
    middles = _heights(columns, chains, boxes, row_gap)
    spots, width, height = _spots(columns, middles, boxes, column_gap)
    spots.update(
        _rows(alone, boxes, spots, top=height + row_gap if spots else 0.0, gaps=(column_gap, row_gap))
    )
    routes = _routes(edges, columns, middles, spots, chains)
    width = max((spot.x + spot.width for spot in spots.values()), default=width)
    height = max([height, *(spot.y + spot.height for spot in spots.values())])
    return Layout(spots, routes, width, height)


def _columns(graph: nx.DiGraph[str]) -> tuple[list[list[_Item]], nx.DiGraph[_Item]]:
    """Return the items of each column, and the edges between neighbouring columns."""
    columns: list[list[_Item]] = [[*sorted(wave)] for wave in nx.topological_generations(graph)]
    column_of = {item: index for index, column in enumerate(columns) for item in column}
    chains: nx.DiGraph[_Item] = nx.DiGraph()
    chains.add_nodes_from(column_of)
    for source, target in graph.edges:
        chain: list[_Item] = [source]
        for index in range(column_of[source] + 1, column_of[target]):
            chain.append(_Dummy(source, target, index))
            columns[index].append(chain[-1])
        chains.add_edges_from(pairwise([*chain, target]))
    return columns, chains


def _ordered(
    columns: list[list[_Item]], chains: nx.DiGraph[_Item], boxes: Mapping[str, Box]
) -> list[list[_Item]]:
    """Return the columns in the best of the orders that sweeping to and fro comes by."""
    best, fewest = columns, _crossings(columns, chains)
    current = [_sorted(column, {}, boxes) for column in columns]
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        order = range(1, len(current)) if forward else range(len(current) - 2, -1, -1)
        for index in order:
            other = current[index - 1 if forward else index + 1]
            rank = {item: position / max(1, len(other) - 1) for position, item in enumerate(other)}
            neighbours = chains.predecessors if forward else chains.successors
            wanted = {
                item: fmean(ranks)
                for item in current[index]
                if (ranks := [rank[one] for one in neighbours(item) if one in rank])
            }
            current[index] = _sorted(current[index], wanted, boxes)
        crossings = _crossings(current, chains)
        if crossings < fewest or sweep == 0:
            best, fewest = [list(column) for column in current], crossings
    return best


def _sorted(column: list[_Item], wanted: Mapping[_Item, float], boxes: Mapping[str, Box]) -> list[_Item]:
    """Return *column* by the wanted position; what belongs together moves as one."""
    here = {item: position / max(1, len(column) - 1) for position, item in enumerate(column)}
    place = {item: wanted.get(item, here[item]) for item in column}
    teams: dict[str, list[float]] = {}
    for item in column:
        if team := _team(item, boxes):
            teams.setdefault(team, []).append(place[item])
    return sorted(
        column,
        key=lambda item: (
            fmean(teams[team]) if (team := _team(item, boxes)) else place[item],
            team,
            place[item],
            here[item],
        ),
    )


def _team(item: _Item, boxes: Mapping[str, Box]) -> str:
    return boxes[item].together if isinstance(item, str) else ""


def _crossings(columns: list[list[_Item]], chains: nx.DiGraph[_Item]) -> int:
    """Count the crossings of edges between neighbouring columns."""
    total = 0
    for left, right in pairwise(columns):
        rank = {item: position for position, item in enumerate(right)}
        seen: list[int] = []
        for item in left:
            ends = sorted(rank[other] for other in chains.successors(item))
            total += sum(len(seen) - bisect_left(seen, end + 1) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _heights(
    columns: list[list[_Item]], chains: nx.DiGraph[_Item], boxes: Mapping[str, Box], row_gap: float
) -> dict[_Item, float]:
    """Return the height of each item's middle: near its neighbours', and never overlapping."""
    size = {
        item: boxes[item].height if isinstance(item, str) else _PASSING
        for column in columns
        for item in column
    }
    middles: dict[_Item, float] = {}
    for column in columns:
        middles.update(zip(column, _apart([0.0] * len(column), column, size, boxes, row_gap), strict=True))
    for sweep in range(_SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wanted = []
            for item in column:
                near = [middles[one] for one in (*chains.predecessors(item), *chains.successors(item))]
                wanted.append(fmean(near) if near else middles[item])
            middles.update(zip(column, _apart(wanted, column, size, boxes, row_gap), strict=True))
    top = min((middle - size[item] / 2 for item, middle in middles.items()), default=0.0)
    return {item: middle - top for item, middle in middles.items()}


def _apart(
    wanted: Sequence[float],
    column: Sequence[_Item],
    size: Mapping[_Item, float],
    boxes: Mapping[str, Box],
    row_gap: float,
) -> list[float]:
    """Return positions as near to *wanted* as order and gaps allow (least squares).

    With the gaps taken out, this is isotonic regression: pool what is out of order.
    """
    offsets = [0.0]
    for one, other in pairwise(column):
        gap = row_gap if _team(one, boxes) == _team(other, boxes) else 2 * row_gap
        offsets.append(offsets[-1] + (size[one] + size[other]) / 2 + gap)
    pools: list[list[float]] = []
    for want, offset in zip(wanted, offsets, strict=False):
        pools.append([want - offset])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [fmean(pool) for pool in pools for _ in pool]
    return [at + offset for at, offset in zip(level, offsets, strict=False)]


def _spots(
    columns: list[list[_Item]], middles: Mapping[_Item, float], boxes: Mapping[str, Box], column_gap: float
) -> tuple[dict[str, Spot], float, float]:
    spots: dict[str, Spot] = {}
    x = bottom = 0.0
    for column in columns:
        names = [item for item in column if isinstance(item, str)]
        for name in names:
            box = boxes[name]
            spots[name] = Spot(x, middles[name] - box.height / 2, box.width, box.height)
        x += max(boxes[name].width for name in names) + column_gap
        bottom = max([bottom, *(middles[item] + _PASSING for item in column)])
        bottom = max([bottom, *(spots[name].y + spots[name].height for name in names)])
    return spots, max(0.0, x - column_gap), bottom


def _rows(
    alone: Sequence[str],
    boxes: Mapping[str, Box],
    spots: Mapping[str, Spot],
    *,
    top: float,
    gaps: tuple[float, float],
) -> dict[str, Spot]:
    """Place boxes that have no edge in rows, as wide as the columns above, or four boxes."""
    column_gap, row_gap = gaps
    found: dict[str, Spot] = {}
    right = max((spot.x + spot.width for spot in spots.values()), default=0.0)
    x = bottom = 0.0
    y = top
    width = max([right, *(4 * (boxes[name].width + column_gap / 2) for name in alone)])
    for name in sorted(alone, key=lambda name: (boxes[name].together, name)):
        box = boxes[name]
        if x > 0 and x + box.width > width:
            x, y = 0.0, bottom + row_gap
        found[name] = Spot(x, y, box.width, box.height)
        x += box.width + column_gap / 2
        bottom = max(bottom, y + box.height)
    return found


def _routes(
    edges: Sequence[tuple[str, str]],
    columns: list[list[_Item]],
    middles: Mapping[_Item, float],
    spots: Mapping[str, Spot],
    chains: nx.DiGraph[_Item],
) -> dict[tuple[str, str], tuple[tuple[float, float], ...]]:
    passed: dict[tuple[str, str], list[_Dummy]] = {}
    for item in chains:
        if isinstance(item, _Dummy):
            passed.setdefault((item.source, item.target), []).append(item)
    sides = []
    for column in columns:
        across = [spots[item] for item in column if isinstance(item, str)]
        sides.append((min(spot.x for spot in across), max(spot.x + spot.width for spot in across)))
    routes = {}
    for source, target in edges:
        start, end = spots[source], spots[target]
        points = [(start.x + start.width, start.middle)]
        for dummy in sorted(passed.get((source, target), ()), key=lambda one: one.column):
            left, right = sides[dummy.column]
            points += [(left, middles[dummy]), (right, middles[dummy])]
        routes[source, target] = (*points, (end.x, end.middle))
    return routes
