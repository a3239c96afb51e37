"""What a fleet file declares: YAML to frozen models to a dependency graph."""

from __future__ import annotations

from vmkeep.fleet.loader import FleetFile, load, loads
from vmkeep.fleet.model import BEST, PRIMARY, VM, Fleet, Kind
from vmkeep.fleet.schema import json_schema
from vmkeep.fleet.selection import Selection, select
from vmkeep.fleet.topology import (
    component_names,
    dependencies,
    dependencies_among,
    dependents,
    disks_of_os,
    graph,
    group_of,
    kind_of,
    waves,
    whole_disks,
)

__all__ = [
    "BEST",
    "PRIMARY",
    "VM",
    "Fleet",
    "FleetFile",
    "Kind",
    "Selection",
    "component_names",
    "dependencies",
    "dependencies_among",
    "dependents",
    "disks_of_os",
    "graph",
    "group_of",
    "json_schema",
    "kind_of",
    "load",
    "loads",
    "select",
    "waves",
    "whole_disks",
]
