"""A fleet file as a checked fleet, or all that is wrong with it at once."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import ValidationError

from vmkeep.errors import FleetError, InputError, Problem
from vmkeep.fleet import document, rules, secrets
from vmkeep.fleet.document import Document, Finding
from vmkeep.fleet.draft import Declared, draft, with_defaults
from vmkeep.fleet.model import BEST, PRIMARY, Fleet, Place
from vmkeep.fleet.schema import json_schema, keys_at
from vmkeep.fleet.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pydantic_core import ErrorDetails

    from vmkeep.fleet.document import Value

_QUOTED: Final = re.compile(r"'([^']*)'")


@dataclass(frozen=True, slots=True)
class FleetFile:
    """A fleet, the file it was read from, and that file's text."""

    fleet: Fleet
    path: Path
    text: str

    def resolve(self, path: str | Path) -> Path:
        """Return *path* as the fleet file means it: `~` expanded, relative to the file's folder."""
        return (self.path.absolute().parent / Path(path).expanduser()).resolve()

    def on(self, placed: Mapping[str, str]) -> FleetFile:
        """Return the fleet with VMs on other hypervisors than it declares, by their names."""
        vms = {
            name: vm.model_copy(update={"hypervisor": placed.get(name, vm.hypervisor)})
            for name, vm in self.fleet.vms.items()
        }
        return replace(self, fleet=self.fleet.model_copy(update={"vms": vms}))

    def at(self, repository: str | None) -> FleetFile:
        """Return the fleet as it is kept in the copy of that name; itself for `None`, `best` and `primary`.

        Raises:
            InputError: there is no such copy.
        """
        if repository in {None, BEST, PRIMARY}:
            return self
        main = self.fleet.repository
        copy = main.copies.get(str(repository))
        if copy is None:
            raise InputError(
                f"{self.path}: repository.copies has no {repository!r}"
                f"{suggestion(str(repository), [PRIMARY, *main.copies])}"
            )
        place = {name: getattr(copy, name) for name in Place.model_fields}
        fleet = self.fleet.model_copy(update={"repository": main.model_copy(update=place)})
        return replace(self, fleet=fleet)


def load(path: str | Path) -> FleetFile:
    """Read and check a fleet file.

    Raises:
        FleetError: it cannot be read, is not YAML, or has problems; all of them are told.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FleetError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _failed([Problem(str(path), line, 1, "", f"is not UTF-8 text: {error.reason}")]) from error
    return loads(text, path=path)


def loads(text: str, *, path: str | Path = "fleet.yaml") -> FleetFile:
    """Check the *text* of a fleet file that stands, or would stand, at *path*.

    Raises:
        FleetError: as `load`.
    """
    path = Path(path)
    try:
        read = document.parse(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise _failed([_syntax(error, text, str(path))]) from error
    fleet, findings = _check(read)
    problems = {_told(finding, read, str(path)): None for finding in findings}
    if problems or fleet is None:
        raise _failed(problems)
    return FleetFile(fleet, path, text)


def _check(read: Document) -> tuple[Fleet | None, list[Finding]]:
    """Return the fleet (`None` unless it is valid in itself) and all findings."""
    if not read.data:
        return None, read.findings or [Finding((), "is empty; `vmkeep init` writes one to start from")]
    found = [*read.findings, *secrets.findings(read.data)]
    data, declared = with_defaults(read.data)
    fleet: Fleet | None = None
    try:
        fleet = Fleet.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        told = {finding.path for finding in found}
        schema_findings = list(_translated(error, data, declared))
        found += [finding for finding in schema_findings if finding.path not in told]
        partial, declared = draft(data, declared, [finding.path for finding in schema_findings])
        if partial is not None:
            found += rules.findings(partial, declared)
    else:
        found += rules.findings(fleet, declared)
    return fleet, found


def _translated(error: ValidationError, data: dict[str, Value], declared: Declared) -> Iterator[Finding]:
    """Yield pydantic's errors in the words of a fleet file."""
    schema = json_schema()
    for detail in error.errors(include_url=False):
        path = _path(detail["loc"], data, missing=detail["type"] == "missing")
        match path:
            case ("vms", str(name), str(key), *_) if key in declared.inherited.get(name, ()):
                continue  # told once, at defaults
        yield Finding(path, _message(detail, path, data, schema))


def _path(loc: Iterable[str | int], data: Value, *, missing: bool) -> document.Path:
    """Return *loc* without what pydantic adds to it: the tag of a union, `[key]`."""
    parts = list(loc)
    path: list[str | int] = []
    for index, part in enumerate(parts):
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif not (missing and index == len(parts) - 1):
            continue
        path.append(part)
    return tuple(path)


def _message(
    detail: ErrorDetails, path: document.Path, data: dict[str, Value], schema: dict[str, Any]
) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"unknown key{suggestion(str(path[-1]), keys_at(schema, path[:-1], data))}"
    if kind == "missing":
        inherited = path[0] == "vms" and path[-1] == "hypervisor"
        return "is required, here or in defaults" if inherited else "is required"
    if kind in _PHRASES:
        return _PHRASES[kind](detail["input"], detail.get("ctx", {}))
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _unknown(found: object, expected: str) -> str:
    """Say that *found* is none of *expected*, a text such as `'bios' or 'uefi'`."""
    word = found if isinstance(found, str) else json.dumps(found)
    known = _QUOTED.findall(expected) or [expected.lower()]
    return f"{word!r} is not known{suggestion(word, known)}"


def _wanted(pattern: str) -> str:
    """Say in words what fits *pattern*, one of those in the models."""
    if pattern.startswith("^[A-Za-z0-9]"):
        return "use letters, digits, '.', '_' and '-', at most 63, with a letter or digit first"
    return "write a share, such as 5%" if "%" in pattern else "write hours and minutes, such as 01:30"


_PHRASES: Final[dict[str, Callable[[Any, Mapping[str, Any]], str]]] = {
    "literal_error": lambda found, context: _unknown(found, context["expected"]),
    "union_tag_invalid": lambda _, context: _unknown(context["tag"], context["expected_tags"]),
    "union_tag_not_found": lambda *_: "needs a driver: images, libvirt or vsphere",
    "value_error": lambda _, context: str(context["error"]),
    "string_pattern_mismatch": lambda found, context: (
        f"{found!r} does not fit: {_wanted(context['pattern'])}"
    ),
    "greater_than_equal": lambda _, context: f"must be at least {context['ge']}",
    "less_than_equal": lambda _, context: f"must be at most {context['le']}",
    "too_short": lambda *_: "must not be empty",
    "string_type": lambda *_: "must be text; put it in quotes",
    "int_type": lambda *_: "must be a whole number",
    "int_from_float": lambda *_: "must be a whole number",
    "bool_type": lambda *_: "must be true or false",
    "dict_type": lambda *_: "must be a mapping of names",
    "model_type": lambda *_: "must be a mapping of keys",
    "model_attributes_type": lambda *_: "must be a mapping of keys",
    "tuple_type": lambda *_: "must be a list, such as [a, b]",
}
"""What pydantic found, by its type, in the words of a fleet file. Called with the value and its context."""


def _told(finding: Finding, read: Document, file: str) -> Problem:
    line, column = finding.mark or read.mark(finding.path)
    return Problem(file, line, column, key_text(finding.path), finding.message)


def key_text(path: document.Path) -> str:
    """Return *path* as it is told: `vms.db1.disks[0].size`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _syntax(error: Exception, text: str, file: str) -> Problem:
    if isinstance(error, RecursionError):
        return Problem(file, 1, 1, "", "is nested too deeply")
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        parts = [getattr(error, "context", None), getattr(error, "problem", None)]
        return Problem(file, mark.line + 1, mark.column + 1, "", ": ".join(part for part in parts if part))
    position = getattr(error, "position", 0)
    before = text[:position]
    reason = getattr(error, "reason", str(error))
    return Problem(file, before.count("\n") + 1, position - before.rfind("\n"), "", f"is not YAML: {reason}")


def _failed(problems: Iterable[Problem]) -> FleetError:
    ordered = tuple(sorted(problems, key=lambda one: (one.line, one.column, one.key, one.message)))
    return FleetError("\n".join(str(problem) for problem in ordered), ordered)
