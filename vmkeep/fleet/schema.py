"""The JSON Schema of a fleet file, made from the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vmkeep.fleet.model import Fleet
from vmkeep.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmkeep.fleet.document import Path, Value

_NAMED: Final = frozenset({"properties", "$defs", "patternProperties"})
"""Keys of a schema below which names stand, not keys of a schema."""


def json_schema() -> dict[str, Any]:
    """Return the schema of what is written in a file, for editors and for `vmkeep schema`.

    It differs from the models in one thing: what `defaults` can give, a VM may leave out.
    """
    schema = Fleet.model_json_schema()
    definitions = schema["$defs"]
    machine = definitions["VM"]
    given = set(definitions["Defaults"]["properties"])
    machine["required"] = [key for key in machine.get("required", ()) if key not in given]
    if not machine["required"]:
        del machine["required"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_written(schema)}


def keys_at(schema: dict[str, Any], path: Path, data: Value) -> Sequence[str]:
    """Return the keys known in the mapping at *path* of *data*; none if any name may stand there."""
    node = schema
    for part in path:
        node = _resolved(schema, node, data)
        if isinstance(part, int):
            node = node.get("items", {})
            data = data[part] if isinstance(data, list) and part < len(data) else None
        else:
            extra = node.get("additionalProperties")
            by_pattern = next(iter(node.get("patternProperties", {}).values()), None)
            node = (
                node.get("properties", {}).get(part)
                or by_pattern
                or (extra if isinstance(extra, dict) else {})
            )
            data = data.get(part) if isinstance(data, dict) else None
    return tuple(_resolved(schema, node, data).get("properties", ()))


def _resolved(schema: dict[str, Any], node: dict[str, Any], data: Value) -> dict[str, Any]:
    """Follow references, and choose among a union's members by *data*'s `driver`."""
    while "$ref" in node or "discriminator" in node:
        if "discriminator" in node:
            union = node["discriminator"]
            tag = data.get(union["propertyName"]) if isinstance(data, dict) else None
            node = {"$ref": union["mapping"][tag]} if tag in union["mapping"] else {}
        else:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _written(node: Any) -> Any:
    """Return *node* as a person writes it: no null, no titles, defaults with their units."""
    if isinstance(node, list):
        return [_written(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "anyOf" in node:
        left = [option for option in node["anyOf"] if option != {"type": "null"}]
        rest = {key: value for key, value in node.items() if key != "anyOf"}
        node = {**left[0], **rest} if len(left) == 1 else {**node, "anyOf": left}
    clean = {
        key: {name: _written(value) for name, value in child.items()} if key in _NAMED else _written(child)
        for key, child in node.items()
        if key not in {"title", "default"}
    }
    if "patternProperties" in clean:
        clean["additionalProperties"] = False
    if node.get("default") not in (None, [], {}) and "$ref" not in clean:
        clean["default"] = _default(clean, node["default"])
    return clean


def _default(node: dict[str, Any], value: Any) -> Any:
    """Return a default as a person writes it: with its unit."""
    if node.get("type") != "string" or isinstance(value, str):
        return value
    if "%" in node["pattern"]:
        return f"{value * 100:g}%"
    return f"{value:g}s" if "ms|s" in node["pattern"] else format_size(value).replace(".00 ", "")
