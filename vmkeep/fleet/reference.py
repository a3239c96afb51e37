"""The reference of every key of a fleet file, as Markdown: `docs/fleet-file.md` is made from it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

from vmkeep.fleet.schema import json_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOP: Final = "The file"
_TITLES: Final = {
    "RepositoryConfig": "repository",
    "CopyConfig": "repository.copies",
    "S3": "repository.s3",
    "Kms": "repository.kms",
    "ObjectLock": "repository.object_lock",
    "Retention": "repository.retention",
    "Ages": "repository.retention.kinds",
    "KeyReference": "A reference to a secret",
    "ImagesHypervisor": "hypervisors: driver images",
    "LibvirtHypervisor": "hypervisors: driver libvirt",
    "VsphereHypervisor": "hypervisors: driver vsphere",
    "Defaults": "defaults",
    "VM": "vms",
    "DiskConfig": "vms.disks",
    "Guest": "vms.guest",
    "SshGuest": "vms.guest.ssh",
    "Components": "vms.components",
    "OsComponent": "vms.components.os",
    "FilesystemComponent": "vms.components.filesystems",
    "DatabaseComponent": "vms.components.databases",
    "ApplicationComponent": "vms.components.applications",
    "HealthCheck": "vms.health",
    "SqlCheck": "vms.health.sql",
    "Placement": "vms.placement",
    "ConsistencyGroup": "consistency_groups",
    "Objective": "objectives",
    "Window": "windows",
    "Schedules": "schedules",
    "Schedule": "schedules: one of them",
}
_HEAD: Final = """\
# The fleet file

One YAML file says which VMs exist, what each is made of, and who depends on whom. `vmkeep init` writes one to
start from, `vmkeep validate` checks it, and `configs/` holds examples. This page is made from the models in
`vmkeep/fleet/model.py`; a test keeps it true.

How it is read:

- YAML 1.2: `yes`, `on`, `10:00` and `2026-01-01` are text. Anchors and merge keys (`<<`) work, tags do not;
  a key that stands twice, or has no value, is an error.
- Sizes are text with a unit: `10GiB`, `512MiB`, `1.5GB` (decimal); `K`, `M`, `G`, `T` are binary. So are
  durations: `500ms`, `10s`, `5m`, `24h`, `14d`, `2w`.
- Names have letters, digits, `.`, `_` and `-`, at most 63, and begin with a letter or digit.
- Paths of this machine are relative to the fleet file, `~` is your home. Paths inside a guest are absolute.
- A key that a VM gives replaces the one in `defaults`, whole: lists and mappings are not merged.
- Secrets never stand in the file. Passwords, tokens, access keys, and URLs that hold one, are refused.
- All that is wrong is told at once, as `file:line: key: what`, with exit code 2; nothing was touched.
"""


def reference() -> str:
    """Return the page."""
    schema = json_schema()
    parts = [_HEAD, *_section(_TOP, schema)]
    for name, title in _TITLES.items():
        parts += _section(title, schema["$defs"][name])
    return "\n".join(parts)


def _section(title: str, node: dict[str, Any]) -> Iterator[str]:
    yield f"## {title}\n"
    if title != _TOP:
        yield f"{node['description']}\n"
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key, child in node["properties"].items():
        default = f"`{json.dumps(child['default'])}`".replace('"', "") if "default" in child else ""
        if key in node.get("required", ()):
            default = "required"
        meaning = " ".join(child.get("description", "").split())
        yield f"| `{key}` | {_value(child)} | {default} | {meaning} |"
    yield ""


def _value(node: dict[str, Any]) -> str:
    """Say in a few words what may stand there."""
    below = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
    named = next((one for one in below if isinstance(one, dict)), None)
    if "$ref" in node:
        text = _link(node["$ref"])
    elif "enum" in node or "const" in node:
        text = ", ".join(
            f"`{json.dumps(one)}`".replace('"', "") for one in node.get("enum", [node.get("const")])
        )
    elif "oneOf" in node or "anyOf" in node:
        text = " or ".join(_value(one) for one in node.get("oneOf") or node["anyOf"])
    elif node.get("type") == "array":
        text = f"list of {_value(node['items'])}"
    elif named is not None:
        text = f"by name: {_value(named)}"
    else:
        text = _plain(node)
    return text


def _plain(node: dict[str, Any]) -> str:
    pattern = node.get("pattern", "")
    if "ms|s" in pattern:
        return "duration"
    if "%" in pattern:
        return "percentage"
    if "[KMGT]" in pattern:
        return "rate" if "/" in pattern else "size"
    if node.get("format") == "path":
        return "path"
    if node.get("type") == "integer":
        low, high = node.get("minimum"), node.get("maximum")
        bounds = f", {low} to {high}" if high is not None else f", at least {low}" if low is not None else ""
        return f"number{bounds}"
    return {"string": "text", "boolean": "`true` or `false`"}[node["type"]]


def _link(reference_: str) -> str:
    title = _TITLES[reference_.rpartition("/")[2]]
    anchor = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_").replace(
        " ", "-"
    )
    return f"[{title}](#{anchor})"


if __name__ == "__main__":
    sys.stdout.write(reference())
