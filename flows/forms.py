"""The run forms: what a person may choose, offered with the names of one fleet."""

from __future__ import annotations

import inspect
from datetime import datetime
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vmkeep import fleet as fleets
from vmkeep.operations.request import Operation, Request

if TYPE_CHECKING:
    from vmkeep.fleet import FleetFile


def signature(file: FleetFile, operation: Operation) -> inspect.Signature:
    """Return the signature of the flow of *operation*; Prefect makes the run form from it."""
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, kind, default in _fields(file, operation)
        ]
    )


def request(operation: Operation, parameters: dict[str, Any]) -> Request:
    """Return what was asked for in a form."""
    at = parameters.get("at")
    return Request(
        operation=operation,
        fleet=Path(parameters["fleet"]),
        targets=tuple(parameters.get("vms") or ()),
        kinds=tuple(parameters.get("components") or ()),
        at=datetime.fromisoformat(at) if isinstance(at, str) else at,
        points=dict(parameters.get("points") or {}),
        rename=dict(parameters.get("rename") or {}),
        overwrite=bool(parameters.get("overwrite")),
        share=float(parameters.get("percent") or 100.0) / 100.0,
        dependencies=bool(parameters.get("dependencies")),
    )


def _fields(file: FleetFile, operation: Operation) -> list[tuple[str, Any, Any]]:
    fleet = file.fleet
    names = tuple(fleet.vms)
    parts = [part for vm in fleet.vms.values() for part in fleets.component_names(vm)]
    kinds = tuple(dict.fromkeys([*(kind for kind in fleets.Kind if _used(kind, parts)), *sorted(set(parts))]))
    fields: list[tuple[str, Any, Any]] = [
        ("vms", _chosen(names, "VMs", f"Which VMs of {fleet.fleet}; none means all"), []),
    ]
    if operation != "configure":
        what = "Which components: whole kinds, or single ones; none means all"
        fields.append(("components", _chosen(tuple(map(str, kinds)), "Components", what), []))
    if operation == "restore":
        fields += [
            ("at", Annotated[datetime | None, Field(
                title="State of", description="Nothing saved after this time is used; empty: the newest"
            )], None),
            ("points", Annotated[dict[str, str], Field(
                title="Recovery points", description='VM to session, such as {"db1": "20261124T0100"}'
            )], {}),
            ("rename", Annotated[dict[str, str], Field(
                title="New names", description='VM to its name after the restore, such as {"db1": "db1-copy"}'
            )], {}),
            ("dependencies", Annotated[bool, Field(
                title="With dependencies", description="Restore also all that these VMs depend on"
            )], False),
            ("overwrite", Annotated[bool, Field(
                title="Overwrite", description="Replace VMs that exist; otherwise none is touched"
            )], False),
        ]  # fmt: skip
    if operation == "verify":
        percent = Annotated[float, Field(gt=0, le=100, title="Percent", description="How much to read back")]
        fields.append(("percent", percent, 100.0))
    where = Annotated[str, Field(title="Fleet file", description="Where the worker finds the fleet file")]
    return [*fields, ("fleet", where, str(file.path.absolute()))]


def _used(kind: fleets.Kind, parts: list[str]) -> bool:
    return any(fleets.kind_of(part) is kind for part in parts)


def _chosen(names: tuple[str, ...], title: str, description: str) -> Any:
    # A drop-down in the form: the names are data, so the type is made of them here.
    several: Any = GenericAlias(list, (Literal.__getitem__(names),))
    return Annotated[several, Field(title=title, description=description)]
