"""Recovery points and components as canonical JSON, and back; `docs/format.md` lists every field."""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any, Final

from vmkeep.errors import IntegrityError
from vmkeep.repository.crypto import ID_SIZE
from vmkeep.repository.manifest import DiskRef, Leaf, Point, SavedComponent, Stats, StreamRef

if TYPE_CHECKING:
    from collections.abc import Mapping

_LEAF: Final = struct.Struct(f"<{ID_SIZE}sQ")
_TEXTS: Final = (
    "vm", "session", "run", "fleet", "taken", "sealed", "group", "consistency", "definition",
    "instructions", "fleet_file",
)  # fmt: skip


def to_json(record: object) -> bytes:
    """Return canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def from_json(data: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        IntegrityError: it is none; it was encrypted, so a faulty program wrote it.
    """
    try:
        record = json.loads(data)
    except ValueError as error:
        raise IntegrityError(f"{what} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise IntegrityError(f"{what} is no JSON object")
    return record


def encode_point(point: Point) -> dict[str, Any]:
    """Return *point* as JSON values."""
    return {
        **{name: getattr(point, name) for name in _TEXTS},
        "components": {name: encode_component(each) for name, each in point.components.items()},
        "missing": dict(point.missing),
        "parent": point.parent,
        **({"copy_of": point.copy_of} if point.copy_of else {}),
        **({"frozen": point.frozen, "skew": point.skew} if point.skew or point.frozen else {}),
        **({"remarks": [*point.remarks]} if point.remarks else {}),
    }


def decode_point(record: Mapping[str, Any]) -> Point:
    """Read a recovery point. Fields that are not known are left out: later versions may add some.

    Raises:
        IntegrityError: a field is missing or malformed.
    """
    try:
        return Point(
            **{name: str(record[name]) for name in _TEXTS},
            components={name: decode_component(each) for name, each in record["components"].items()},
            missing=dict(record["missing"]),
            parent=record["parent"],
            copy_of=str(record.get("copy_of", "")),
            frozen=float(record.get("frozen", 0)),
            skew=float(record.get("skew", 0)),
            remarks=tuple(map(str, record.get("remarks", ()))),
        )
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise IntegrityError(f"a recovery point is malformed: {error!r}") from error


def encode_component(component: SavedComponent) -> dict[str, Any]:
    """Return *component* as JSON values."""
    stats = component.stats
    return {
        "name": component.name,
        "disks": {
            name: {"size": ref.size, "chunk": ref.chunk_size, "leaves": _text(b"".join(ref.leaves))}
            for name, ref in component.disks.items()
        },
        "streams": {
            name: {
                "size": ref.size,
                "leaves": _text(b"".join(_LEAF.pack(leaf.id, leaf.length) for leaf in ref.leaves)),
            }
            for name, ref in component.streams.items()
        },
        "facts": dict(component.facts),
        "stats": {
            "read": stats.read, "new": stats.new, "stored": stats.stored, "seconds": stats.seconds,
        },
    }  # fmt: skip


def decode_component(record: Mapping[str, Any]) -> SavedComponent:
    """Read a component; raises as `decode_point` says, or what it translates."""
    return SavedComponent(
        name=record["name"],
        disks={
            name: DiskRef(ref["size"], ref["chunk"], _ids(base64.b64decode(ref["leaves"])))
            for name, ref in record["disks"].items()
        },
        streams={
            name: StreamRef(
                ref["size"],
                tuple(Leaf(*fields) for fields in _LEAF.iter_unpack(base64.b64decode(ref["leaves"]))),
            )
            for name, ref in record["streams"].items()
        },
        facts=dict(record["facts"]),
        stats=Stats(**record["stats"]),
    )


def _ids(data: bytes) -> tuple[bytes, ...]:
    return tuple(data[i : i + ID_SIZE] for i in range(0, len(data), ID_SIZE))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
