"""A plan as a picture: every step, what it needs and what it only waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkeep.planning.step import Verb
from vmkeep.reports import svg
from vmkeep.reports.layout import Box, Spot, layered
from vmkeep.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.planning import Plan, Step

VERB_COLOURS: Final = {
    Verb.PLACE: ("#f1f5f9", "#475569"),
    Verb.CONFIGURE: ("#f1f5f9", "#475569"),
    Verb.SNAPSHOT: ("#f3f0ff", "#6d28d9"),
    Verb.BACKUP: ("#dbeafe", "#1e40af"),
    Verb.RESTORE: ("#dbeafe", "#1e40af"),
    Verb.SERVE: ("#ccfbf1", "#115e59"),
    Verb.STREAM: ("#dbeafe", "#1e40af"),
    Verb.UPLOAD: ("#e0f2fe", "#075985"),
    Verb.SEAL: ("#dcfce7", "#166534"),
    Verb.START: ("#dcfce7", "#166534"),
    Verb.HEALTH: ("#fef3c7", "#92400e"),
    Verb.VERIFY: ("#fef3c7", "#92400e"),
    Verb.COPY: ("#e0e7ff", "#3730a3"),
    Verb.PRUNE: ("#ffe4e6", "#9f1239"),
    Verb.ISOLATE: ("#f1f5f9", "#475569"),
    Verb.REMOVE: ("#fafafa", "#6b7280"),
    Verb.RELEASE: ("#fafafa", "#6b7280"),
}
"""Ground and ink of each verb."""

_HEIGHT: Final = 26.0
_SIZE: Final = 11.0
_MARGIN: Final = 28.0
_HEAD: Final = 66.0
_FOOT: Final = 50.0


def plan_svg(plan: Plan) -> str:
    """Return the plan as SVG, from left to right; the critical path has bold frames."""
    critical = {step.id for step in plan.critical_path()}
    boxes = {
        step.id: Box(
            svg.text_width(step.id, _SIZE) + 22, _HEIGHT, step.group or (step.vms[0] if step.vms else "")
        )
        for step in plan.steps.values()
    }
    required = {(before, after): needed for before, after, needed in plan.essential_edges()}
    layout = layered(boxes, list(required), column_gap=56, row_gap=8)
    width = max(layout.width + 2 * _MARGIN, 640.0)
    height = _HEAD + layout.height + _FOOT
    title = f"{plan.operation} {plan.fleet}"
    estimate = f"{len(plan)} steps · at least {format_duration(plan.length())}, along the critical path"
    body = [
        svg.words(_MARGIN, 34, title, size=18, bold=True),
        svg.words(_MARGIN + svg.text_width(title, 18) + 16, 34, estimate, fill=svg.SOFT),
        f'<g transform="translate({_MARGIN:g} {_HEAD:g})">',
    ]
    for edge, points in layout.routes.items():
        body.append(svg.curve(points, faint=True, dashed=not required[edge]))
    body += [_step(step, layout.spots[name], critical=name in critical) for name, step in plan.steps.items()]
    body += ["</g>", *_legend(height - 22)]
    return svg.document(width, height, title, body)


def _step(step: Step, spot: Spot, *, critical: bool) -> str:
    ground, ink = VERB_COLOURS[step.verb]
    stroke = ink if critical else svg.LINE
    parts = [
        svg.rect(spot.x, spot.y, spot.width, spot.height, fill=ground, stroke=stroke, dashed=step.always)
    ]
    if critical:
        parts.append(
            svg.rect(
                spot.x - 2, spot.y - 2, spot.width + 4, spot.height + 4, fill="none", stroke=ink, radius=10
            )
        )
    parts.append(
        svg.words(spot.x + spot.width / 2, spot.y + 17, step.id, size=_SIZE, fill=ink, anchor="middle")
    )
    size = f", {format_size(step.estimate.size)}" if step.estimate.size else ""
    return svg.grouped(f"{step.id}: about {format_duration(step.estimate.seconds)}{size}", parts)


def _legend(y: float) -> Iterator[str]:
    x = _MARGIN
    for text, dashed in (("needs", False), ("only waits for", True)):
        yield svg.curve([(x, y - 3), (x + 28, y - 3)], faint=True, dashed=dashed)
        yield svg.words(x + 36, y + 1, text, size=11, fill=svg.SOFT)
        x += 36 + svg.text_width(text, 11) + 18
    yield svg.rect(x, y - 10, 20, 14, fill="#fafafa", stroke=svg.SOFT, radius=4, dashed=True)
    yield svg.words(x + 26, y + 1, "runs whatever happened before", size=11, fill=svg.SOFT)
    x += 26 + svg.text_width("runs whatever happened before", 11) + 18
    yield svg.rect(x, y - 10, 20, 14, fill="#ffffff", stroke=svg.INK, radius=4)
    yield svg.rect(x - 2, y - 12, 24, 18, fill="none", stroke=svg.INK, radius=6)
    yield svg.words(x + 30, y + 1, "critical path", size=11, fill=svg.SOFT)
