"""The run forms: what a person may choose, offered with the names of one fleet."""

from __future__ import annotations

import inspect
from datetime import datetime
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from vmkeep import fleet as fleets
from vmkeep.errors import InputError
from vmkeep.operations.request import Operation, Request
from vmkeep.units import parse_duration

if TYPE_CHECKING:
    from vmkeep.fleet import FleetFile


_WORDS: Final = {
    "vms": "Which VMs; none means all.",
    "targets": "Which services or VMs, with all that they depend on; none means all services.",
    "components": "Which components: whole kinds, or single ones; none means all.",
    "at": "Restore the state of this time: nothing that was saved later is used. None: the newest.",
    "points": 'Recovery points to use, VM to session, such as {"db1": "20261124T010000123Z-…"}.',
    "rename": 'Restore under other names, VM to name, such as {"db1": "db1-copy"}.',
    "bandwidth": "Bytes a second that stream into each disk of VMs that were started at once; 0: no limit.",
    "disks": "Only these whole disks, into VMs that exist; none means all that is selected.",
    "networks": 'Other networks, the new one by the one that a VM was on, such as {"VMNetwork": "dmz"}.',
    "storage": "Where the disks of VMs that do not exist are made; none means where they were.",
    "hypervisors": "Restore to these hypervisors, VMs spread over them; none means each VM to its own.",
    "dependencies": "Restore also all that these VMs depend on.",
    "overwrite": "Replace VMs that exist. Without it, no VM that exists is touched.",
    "instant": "Start the VMs at once, from their recovery points. Not on all hypervisors.",
    "repository": "Which copy to read; best is the nearest of those with the newest state.",
    "copies": "Where to copy to; none means all copies.",
    "packs": "Read all that is stored instead of recovery points: what was not read for the longest time.",
    "dead_after": "Take a backup or restore for dead that began longer ago and has not ended, such as 7d.",
    "any_time": "Back up also while no window of the fleet is open.",
    "percent": "How much of the stored data to read back.",
    "fleet": "Where the worker finds the fleet file.",
}


def signature(file: FleetFile, operation: Operation) -> inspect.Signature:
    """Return the signature of the flow of *operation*; Prefect makes the run form from it."""
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, kind, default in _fields(file, operation)
        ]
    )


def docstring(signature: inspect.Signature, first: str) -> str:
    """Return a Google docstring for the signature: Prefect takes the form's explanations from it."""
    return "\n".join([first, "", "Args:", *(f"    {name}: {_WORDS[name]}" for name in signature.parameters)])


def request(operation: Operation, parameters: dict[str, Any]) -> Request:
    """Return what was asked for in a form."""
    at = parameters.get("at")
    return Request(
        operation=operation,
        fleet=Path(parameters["fleet"]),
        targets=tuple(parameters.get("targets") or parameters.get("vms") or ()),
        kinds=tuple(parameters.get("components") or ()),
        at=datetime.fromisoformat(at) if isinstance(at, str) else at,
        points=dict(parameters.get("points") or {}),
        rename=dict(parameters.get("rename") or {}),
        overwrite=bool(parameters.get("overwrite")),
        instant=bool(parameters.get("instant")),
        bandwidth=int(parameters.get("bandwidth") or 0),
        disks=tuple(parameters.get("disks") or ()),
        networks=dict(parameters.get("networks") or {}),
        storage=parameters.get("storage"),
        hypervisors=tuple(parameters.get("hypervisors") or ()),
        repository=parameters.get("repository"),
        copies=tuple(parameters.get("copies") or ()),
        packs=bool(parameters.get("packs")),
        share=float(parameters.get("percent") or 100.0) / 100.0,
        dependencies=bool(parameters.get("dependencies")),
        any_time=bool(parameters.get("any_time")),
        **_patience(parameters.get("dead_after")),
    )


def _patience(dead_after: str | None) -> dict[str, float]:
    if dead_after is None:
        return {}
    try:
        return {"dead_after": parse_duration(dead_after)}
    except ValueError as error:
        raise InputError(f"dead_after: {error}") from error


def _fields(file: FleetFile, operation: Operation) -> list[tuple[str, Any, Any]]:
    fleet = file.fleet
    names = tuple(fleet.vms)
    parts = [part for vm in fleet.vms.values() for part in fleets.component_names(vm)]
    kinds = tuple(dict.fromkeys([*(kind for kind in fleets.Kind if _used(kind, parts)), *sorted(set(parts))]))
    copies = tuple(fleet.repository.copies)
    fields: list[tuple[str, Any, Any]] = []
    if operation == "prune":
        fields.append(("dead_after", str, "7d"))
    elif operation == "drill":
        fields.append(("targets", _several(tuple(dict.fromkeys([*fleet.objectives, *names]))), []))
        fields += [("at", datetime | None, None), ("points", dict[str, str], {}), ("instant", bool, True)]
    else:
        fields.append(("vms", _several(names), []))
    if operation == "copy":
        fields.append(("copies", _several(copies), []))
    elif operation not in {"configure", "prune", "drill"}:
        fields.append(("components", _several(tuple(map(str, kinds))), []))
    if operation == "backup":
        fields.append(("any_time", bool, False))
    if operation == "restore":
        fields += [
            ("at", datetime | None, None),
            ("points", dict[str, str], {}),
            ("rename", dict[str, str], {}),
            ("dependencies", bool, False),
            ("overwrite", bool, False),
            ("instant", bool, False),
            ("bandwidth", Annotated[int, Field(ge=0)], 0),
            ("disks", list[str], []),
            ("networks", dict[str, str], {}),
            ("storage", str | None, None),
            ("hypervisors", _several(tuple(fleet.hypervisors)), []),
        ]
    if operation == "verify":
        fields.append(("packs", bool, False))
        fields.append(("percent", Annotated[float, Field(gt=0, le=100)], 100.0))
    if operation in {"restore", "drill"} and copies:
        fields.append(("repository", _one_of((fleets.BEST, fleets.PRIMARY, *copies)), fleets.BEST))
    if operation in {"verify", "prune"} and copies:
        fields.append(("repository", _one_of((fleets.PRIMARY, *copies)), fleets.PRIMARY))
    return [*fields, ("fleet", str, str(file.path.absolute()))]


def _used(kind: fleets.Kind, parts: list[str]) -> bool:
    return any(fleets.kind_of(part) is kind for part in parts)


def _one_of(names: tuple[str, ...]) -> Any:
    return Literal.__getitem__(names)


def _several(names: tuple[str, ...]) -> Any:
    # A drop-down in the form: the names are data, so the type is made of them here.
    return GenericAlias(list, (Literal.__getitem__(names),))
