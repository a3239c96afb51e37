"""As much of a fleet as is valid in itself, so that one mistake does not hide the others."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from vmkeep.fleet.model import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmkeep.fleet.document import Path, Value

_INHERITED: Final = (
    "hypervisor",
    "cpus",
    "memory",
    "firmware",
    "iso",
    "networks",
    "guest",
    "components",
    "health",
)
_STAND_IN: Final[dict[str, Value]] = {
    "version": 1,
    "fleet": "unnamed",
    "repository": {"store": "nowhere", "key": {"env": "NONE"}},
}
_BY_NAME: Final = frozenset(
    {"hypervisors", "consistency_groups", "objectives", "windows", "schedules", "limits"}
)


@dataclass(frozen=True, slots=True)
class Declared:
    """What a file declares, valid or not."""

    vms: frozenset[str] = frozenset()
    hypervisors: frozenset[str] = frozenset()
    inherited: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The keys that each VM has from `defaults`."""
    broken: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The keys of each VM that were left out of the draft; rules about them have nothing to say."""


def with_defaults(data: dict[str, Value]) -> tuple[dict[str, Value], Declared]:
    """Return *data* with every VM complete. A key that a VM gives replaces the default's, whole."""
    defaults, vms = data.get("defaults"), data.get("vms")
    if not isinstance(vms, dict):
        return data, Declared(hypervisors=_names(data, "hypervisors"))
    given: dict[str, Value] = {}
    if isinstance(defaults, dict):
        given = {key: defaults[key] for key in _INHERITED if key in defaults}
    complete: dict[str, Value] = {}
    inherited: dict[str, frozenset[str]] = {}
    for name, vm in vms.items():
        own = vm if isinstance(vm, dict) else {}
        inherited[name] = frozenset(given) - frozenset(own)
        complete[name] = {**given, **vm} if isinstance(vm, dict) else vm
    declared = Declared(frozenset(vms), _names(data, "hypervisors"), inherited)
    return {**data, "vms": complete}, declared


def draft(data: dict[str, Value], declared: Declared, wrong: Iterable[Path]) -> tuple[Fleet | None, Declared]:
    """Return the fleet without what is *wrong*, or `None` if too little is left to say more."""
    left = dict(data)
    broken: dict[str, set[str]] = {}
    vms = dict(vms) if isinstance(vms := data.get("vms"), dict) else {}
    for path in wrong:
        match path:
            case ("vms", str(name)):
                vms.pop(name, None)
            case ("vms", str(name), str(key), *_):
                broken.setdefault(name, set()).add(key)
            case (str(section), str(name), *_) if section in _BY_NAME:
                entries = left.get(section)
                left[section] = (
                    {k: v for k, v in entries.items() if k != name} if isinstance(entries, dict) else {}
                )
            case (str(section), *_):
                left.pop(section, None)
    left["vms"] = {name: _without(vm, broken.get(name, set())) for name, vm in vms.items()}
    left.setdefault("hypervisors", {})
    if left["hypervisors"] == {}:
        left["hypervisors"] = {"none": {"driver": "images", "path": "."}}
    try:
        fleet = Fleet.model_validate_json(json.dumps({**_STAND_IN, **left}), strict=True)
    except ValidationError:
        return None, declared
    kept = {name: frozenset(keys) for name, keys in broken.items()}
    return fleet, Declared(declared.vms, declared.hypervisors, declared.inherited, kept)


def _without(vm: Value, keys: set[str]) -> Value:
    if not isinstance(vm, dict) or not keys:
        return vm
    left = {key: value for key, value in vm.items() if key not in keys}
    left.setdefault("hypervisor", "none")
    return left


def _names(data: dict[str, Value], section: str) -> frozenset[str]:
    entries = data.get(section)
    return frozenset(entries) if isinstance(entries, dict) else frozenset()
