"""A YAML text as plain values that remember where they stand.

Read as YAML 1.2 does: `yes`, `on`, `10:00` and `2026-01-01` are strings, so that a name or a time is
never turned into something else. Anchors and merge keys work; tags, duplicate keys and keys without a
value are problems.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

Path: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the top, such as `("vms", "db1", "disks", 0)`."""

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

_MOST_NODES: Final = 2_000_000
"""More than a fleet of 10,000 VMs has; anchors nested in anchors reach it in a few lines."""

_CORE: Final = "tag:yaml.org,2002:"
_SCALARS: Final = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml is 8 times as fast
    """Composes nodes; only the resolvers of the YAML 1.2 core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # yaml's own way


for _name, _pattern, _first in _SCALARS:
    for _letter in _first:
        _Loader.yaml_implicit_resolvers.setdefault("" if _letter == "\0" else _letter, []).append(
            (_CORE + _name, re.compile(f"(?:{_pattern})$"))
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem at a path; the line is looked up when it is told."""

    path: Path
    message: str
    mark: tuple[int, int] | None = None
    """Line and column, where the path alone does not say."""


@dataclass(slots=True)
class Document:
    """What was read, and where each value stands."""

    data: dict[str, Value]
    findings: list[Finding] = field(default_factory=list)
    _marks: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def mark(self, path: Path) -> tuple[int, int]:
        """Return the line and column (from 1) of the key at *path*, or of its nearest parent in the file."""
        while path and path not in self._marks:
            path = path[:-1]
        return self._marks.get(path, (1, 1))


def parse(text: str) -> Document:
    """Read *text*.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
    finally:
        loader.dispose()
    document = Document({})
    if root is None or not isinstance(root, yaml.MappingNode):
        document.findings.append(
            Finding((), "a fleet file is a mapping; `vmkeep init` writes one to start from")
        )
        return document
    value = _Builder(document).build(root, ())
    if isinstance(value, dict):
        document.data = value
    return document


class _Builder:
    """Turns nodes into values, noting marks and findings on the way."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._open: set[int] = set()
        self._count = 0

    def build(self, node: yaml.Node, path: Path) -> Value:
        """Return the value of *node*, which stands at *path*."""
        self._count += 1
        if self._count > _MOST_NODES:
            raise yaml.MarkedYAMLError(
                problem="too large once its anchors are expanded", problem_mark=node.start_mark
            )
        if id(node) in self._open:
            raise yaml.MarkedYAMLError(problem="an anchor contains itself", problem_mark=node.start_mark)
        self._document._marks.setdefault(path, _mark(node))  # noqa: SLF001  # the builder fills its document
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                self._plain(node, path, "seq")
                return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> Value:
        self._plain(node, path, "map")
        value: dict[str, Value] = {}
        for key, child, mark in self._pairs(node, path):
            here = (*path, key)
            self._document._marks[here] = mark  # noqa: SLF001
            value[key] = self.build(child, here)
        return value

    def _pairs(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, yaml.Node, tuple[int, int]]]:
        """Yield key, node and mark: a mapping's own keys first, then what it merges in."""
        seen: dict[str, tuple[int, int]] = {}
        merged: list[yaml.Node] = []
        for key_node, child in node.value:
            if key_node.tag == _CORE + "merge":
                merged.extend(child.value if isinstance(child, yaml.SequenceNode) else [child])
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._find(path, "a key must be a plain word", key_node)
                continue
            key = key_node.value
            if key in seen:
                self._find((*path, key), f"stands here twice; first in line {seen[key][0]}", key_node)
                continue
            seen[key] = _mark(key_node)
            yield key, child, seen[key]
        yield from self._inherited(merged, path, set(seen))

    def _inherited(
        self, nodes: list[yaml.Node], path: Path, seen: set[str]
    ) -> Iterator[tuple[str, yaml.Node, tuple[int, int]]]:
        for node in nodes:
            if not isinstance(node, yaml.MappingNode):
                self._find(path, "'<<' merges mappings only", node)
                continue
            if id(node) in self._open:
                raise yaml.MarkedYAMLError(problem="an anchor contains itself", problem_mark=node.start_mark)
            self._open.add(id(node))
            for key, child, mark in self._pairs(node, path):
                if key not in seen:
                    seen.add(key)
                    yield key, child, mark
            self._open.discard(id(node))

    def _scalar(self, node: yaml.Node, path: Path) -> Value:
        text = str(node.value)
        kind = node.tag.removeprefix(_CORE)
        if kind == "null":
            self._find(path, "has no value: write one, or leave the key out", node)
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
        self._plain(node, path, "str")
        return text

    def _plain(self, node: yaml.Node, path: Path, kind: str) -> None:
        if node.tag != _CORE + kind:
            self._find(path, f"the tag {node.tag} is not allowed: a fleet file holds plain values", node)

    def _find(self, path: Path, message: str, node: yaml.Node) -> None:
        self._document.findings.append(Finding(path, message, _mark(node)))


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
