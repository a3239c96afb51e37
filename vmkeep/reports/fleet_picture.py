"""A fleet as a picture: who needs whom, what each VM is made of, what is saved at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import networkx as nx

from vmkeep.fleet import component_names, graph, kind_of
from vmkeep.fleet.model import Kind
from vmkeep.reports import svg
from vmkeep.reports.layout import Box, Layout, Spot, layered
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmkeep.fleet.model import VM, Fleet

KIND_COLOURS: Final = {
    Kind.OS: ("#e2e8f0", "#334155"),
    Kind.FILESYSTEMS: ("#dcfce7", "#166534"),
    Kind.DATABASES: ("#dbeafe", "#1e40af"),
    Kind.APPLICATIONS: ("#fef3c7", "#92400e"),
}
"""Ground and ink of each kind."""

_GROUP_COLOURS: Final = (
    ("#f3f0ff", "#6d28d9"),
    ("#e6fafb", "#0e7490"),
    ("#fff0f1", "#be123c"),
    ("#f4fbe4", "#4d7c0f"),
    ("#fff4e8", "#c2410c"),
)
_WIDTH: Final = 196.0
_INSET: Final = 12.0
_TAG_HEIGHT: Final = 18.0
_TAG_SIZE: Final = 10.5
_MARGIN: Final = 28.0
_HEAD: Final = 82.0
_FOOT: Final = 58.0
_PAD: Final = 12.0
_LABEL: Final = 16.0


@dataclass(frozen=True, slots=True)
class _Tag:
    """A component inside its VM's box, relative to the box."""

    x: float
    y: float
    width: float
    text: str
    kind: Kind


def fleet_svg(fleet: Fleet) -> str:
    """Return the fleet as SVG: dependencies on the left, dependents on the right."""
    edges = graph(fleet)
    direct = set(nx.transitive_reduction(edges).edges)
    owner = {name: group for group, config in fleet.consistency_groups.items() for name in config.vms}
    boxes = {name: Box(_WIDTH, _height(vm), owner.get(name, "")) for name, vm in fleet.vms.items()}
    layout = layered(boxes, sorted(edges.edges), column_gap=76, row_gap=26)
    width = max(layout.width + 2 * _MARGIN, 640.0)
    height = _HEAD + layout.height + _PAD + _FOOT
    body = [*_heading(fleet), f'<g transform="translate({_MARGIN:g} {_HEAD:g})">']
    for number, (group, config) in enumerate(fleet.consistency_groups.items()):
        body += _area(layout, group, config.vms, _GROUP_COLOURS[number % len(_GROUP_COLOURS)])
    for edge, points in layout.routes.items():
        body.append(svg.curve(points, faint=edge not in direct))
    body += [_machine(name, vm, layout.spots[name]) for name, vm in fleet.vms.items()]
    body += ["</g>", *_legend(fleet, height - 24)]
    return svg.document(width, height, f"The fleet {fleet.fleet}", body)


def _heading(fleet: Fleet) -> Iterator[str]:
    components = sum(len(component_names(vm)) for vm in fleet.vms.values())
    counts = [_count(len(fleet.vms), "VM"), _count(components, "component")]
    if fleet.consistency_groups:
        counts.append(_count(len(fleet.consistency_groups), "consistency group"))
    yield svg.words(_MARGIN, 34, fleet.fleet, size=18, bold=True)
    x = _MARGIN + svg.text_width(fleet.fleet, 18) + 16
    yield svg.words(x, 34, " · ".join(counts), size=12, fill=svg.SOFT)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _legend(fleet: Fleet, y: float) -> Iterator[str]:
    x = _MARGIN
    used = {kind_of(name) for vm in fleet.vms.values() for name in component_names(vm)}
    for kind in Kind:
        if kind in used:
            ground, ink = KIND_COLOURS[kind]
            yield svg.rect(x, y - 9, 12, 12, fill=ground, stroke=ink, radius=4)
            yield svg.words(x + 18, y + 1, kind.value, size=11, fill=svg.SOFT)
            x += 18 + svg.text_width(kind.value, 11) + 18
    if fleet.consistency_groups:
        yield svg.rect(
            x, y - 10, 20, 14, fill=_GROUP_COLOURS[0][0], stroke=_GROUP_COLOURS[0][1], radius=4, dashed=True
        )
        yield svg.words(x + 26, y + 1, "saved at one moment", size=11, fill=svg.SOFT)
        x += 26 + svg.text_width("saved at one moment", 11) + 18
    yield svg.curve([(x, y - 3), (x + 28, y - 3)])
    yield svg.words(x + 36, y + 1, "restored before", size=11, fill=svg.SOFT)


def _machine(name: str, vm: VM, spot: Spot) -> str:
    inner = spot.width - 2 * _INSET
    parts = [svg.rect(spot.x, spot.y, spot.width, spot.height, fill="#ffffff", stroke=svg.LINE)]
    where = svg.shortened(vm.hypervisor, 10, inner / 2)
    title = svg.shortened(name, 14, inner - svg.text_width(where, 10) - 8)
    parts.append(svg.words(spot.x + _INSET, spot.y + 21, title, size=14, bold=True))
    right = spot.x + spot.width - _INSET
    parts.append(svg.words(right, spot.y + 20, where, size=10, fill=svg.SOFT, anchor="end"))
    size = _size(vm)
    parts.append(svg.words(spot.x + _INSET, spot.y + 37, size, size=10.5, fill=svg.SOFT))
    for tag in _tags(vm):
        ground, ink = KIND_COLOURS[tag.kind]
        x, y = spot.x + tag.x, spot.y + tag.y
        parts.append(svg.rect(x, y, tag.width, _TAG_HEIGHT, fill=ground, radius=_TAG_HEIGHT / 2))
        parts.append(
            svg.words(x + tag.width / 2, y + 12.8, tag.text, size=_TAG_SIZE, fill=ink, anchor="middle")
        )
    checks = ", ".join(check.kind for check in vm.health) or "none"
    told = [f"{name} on {vm.hypervisor}: {size}", *component_names(vm), f"health checks: {checks}"]
    return svg.grouped("\n".join(told), parts)


def _size(vm: VM) -> str:
    disks = format_size(sum(disk.size for disk in vm.disks)).replace(".00", "").replace(".0 ", " ")
    memory = format_size(vm.memory).replace(".00", "").replace(".0 ", " ")
    return f"{vm.cpus} CPU{'s' * (vm.cpus > 1)} · {memory} · " + (f"{disks} disk" if vm.disks else "no disk")


def _tags(vm: VM) -> list[_Tag]:
    """Return the VM's components, in lines that fit its box."""
    tags: list[_Tag] = []
    x, y = _INSET, 46.0
    for component in component_names(vm):
        text = svg.shortened(component.partition(".")[2] or component, _TAG_SIZE, _WIDTH - 2 * _INSET - 16)
        width = svg.text_width(text, _TAG_SIZE) + 16
        if x > _INSET and x + width > _WIDTH - _INSET:
            x, y = _INSET, y + _TAG_HEIGHT + 5
        tags.append(_Tag(x, y, width, text, kind_of(component)))
        x += width + 5
    return tags


def _height(vm: VM) -> float:
    return max((tag.y + _TAG_HEIGHT for tag in _tags(vm)), default=36.0) + 11


def _area(layout: Layout, group: str, vms: Sequence[str], colours: tuple[str, str]) -> Iterator[str]:
    """Yield the shade behind a group: one rectangle if no other VM lies in it, else a band from VM to VM."""
    members = [layout.spots[name] for name in vms]
    whole = _around(members)
    others = [spot for name, spot in layout.spots.items() if name not in vms]
    ground, ink = colours
    if not any(_overlap(whole, spot) for spot in others):
        yield svg.rect(
            whole.x, whole.y, whole.width, whole.height, fill=ground, stroke=ink, radius=14, dashed=True
        )
        yield svg.words(whole.x + 12, whole.y + 14, group, size=11, fill=ink, bold=True)
        return
    near = [_around([spot]) for spot in members]
    yield from (
        _band(one, other, ground) for one, other in pairwise(sorted(near, key=lambda spot: (spot.x, spot.y)))
    )
    for spot in near:
        yield svg.rect(
            spot.x, spot.y, spot.width, spot.height, fill=ground, stroke=ink, radius=14, dashed=True
        )
        yield svg.words(spot.x + 12, spot.y + 14, group, size=11, fill=ink, bold=True)


def _band(one: Spot, other: Spot, ground: str) -> str:
    """Return a shade that leads from *one* to *other*, which lies to the right of it or below it."""
    if other.x > one.x:
        left, right = one.x + one.width - 14, other.x + 14
        corners = [
            (left, one.y),
            (right, other.y),
            (right, other.y + other.height),
            (left, one.y + one.height),
        ]
    else:
        middle = one.x + one.width / 2
        corners = [(middle - 20, one.middle), (middle + 20, one.middle)]
        corners += [(middle + 20, other.middle), (middle - 20, other.middle)]
    path = " L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    return f'<path d="M{path} Z" fill="{ground}"/>'


def _around(spots: Sequence[Spot]) -> Spot:
    left, top = min(spot.x for spot in spots) - _PAD, min(spot.y for spot in spots) - _PAD - _LABEL
    right = max(spot.x + spot.width for spot in spots) + _PAD
    bottom = max(spot.y + spot.height for spot in spots) + _PAD
    return Spot(left, top, right - left, bottom - top)


def _overlap(one: Spot, other: Spot) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )
