"""`vmkeep import`: from VMs that exist to what the fleet file says of them."""

from __future__ import annotations

import io
import json
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from vmkeep import fleet as fleets
from vmkeep.cli.console import out, print_json, warn
from vmkeep.cli.edit import edit, flow_map, inline
from vmkeep.cli.new_file import write_text
from vmkeep.errors import InputError, NotFoundError
from vmkeep.fleet.model import ImagesHypervisor, LibvirtHypervisor
from vmkeep.operations.imported import Imported, find

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmkeep.fleet.model import HypervisorConfig

_NEW = """\
# yaml-language-server: $schema=fleet.schema.json
# Written by 'vmkeep import'. Who depends on whom, and what the VMs are made of, is for you to say.
version: 1
fleet: {fleet}

repository:
  store: ./backups            # a path (a disk, an NFS mount), or s3://BUCKET/PREFIX
  key: {{file: ./{file}.key}}  # the key itself never stands here
  retention: {{last: 3, daily: 7, weekly: 5, monthly: 12}}

hypervisors: {{here: {hypervisor}}}

vms:
"""


@dataclass(frozen=True, slots=True)
class Where:
    """Where to look for VMs: in the fleet file's hypervisors, or what a new fleet file is to name."""

    hypervisor: str | None = None
    uri: str | None = None
    images: Path | None = None


def import_vms(path: Path, names: Sequence[str], where: Where, *, dry_run: bool, as_json: bool) -> None:
    """Write VMs that exist into the fleet file, which is made where there is none.

    Raises:
        InputError: nothing says where to look, or a VM cannot be taken over.
        NotFoundError: there is no such VM, or hypervisor.
        AccessError: the file cannot be written.
    """
    fresh = not path.exists()
    if fresh:
        config = _config(path, where.uri, where.images)
        found = find({"here": config}, path.absolute().parent, names)
        text = _new_file(path, config, found)
    else:
        if where.uri is not None or where.images is not None:
            raise InputError(f"{path} names its hypervisors itself: say one of them with --hypervisor")
        found = _in_fleet(path, names, where.hypervisor)
        text = _as_yaml(found)
    for problem in found.left_out.values():
        warn(problem)
    if found.vms and not dry_run:
        write_text(path, text) if fresh else edit(path, lambda document: _add(document, found))
    if as_json:
        print_json({"vms": found.vms, "left_out": found.left_out, "written": bool(found.vms and not dry_run)})
    elif not found.vms:
        out().print("there is no VM to import", markup=False)
    else:
        out().print(text, markup=False, highlight=False, end="")
        if not dry_run:
            count = f"{len(found.vms)} VM{'s' if len(found.vms) > 1 else ''}"
            told = f"wrote {count} into {path}. Say who depends on whom; then 'vmkeep validate'"
            out().print(f"{told}{' and vmkeep init' if fresh else ''}.", markup=False)


def _config(path: Path, uri: str | None, images: Path | None) -> HypervisorConfig:
    if (uri is None) == (images is None):
        raise InputError(
            f"there is no {path}: say where the VMs are, --uri qemu:///system or --images FOLDER, "
            "and it is made; or make it with 'vmkeep init'"
        )
    if uri is not None:
        return LibvirtHypervisor(driver="libvirt", uri=uri)
    return ImagesHypervisor.model_validate({"driver": "images", "path": _seen_from(path, images)})


def _seen_from(path: Path, images: Path | None) -> Path | None:
    """Return the folder as the fleet file is to name it: as it was typed, if the two lie together.

    Raises:
        InputError: it is no folder.
    """
    if images is None:
        return None
    folder, base = images.expanduser().absolute(), path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"--images {images}: there is no such folder")
    return folder.relative_to(base) if folder.is_relative_to(base) else folder


def _in_fleet(path: Path, names: Sequence[str], hypervisor: str | None) -> Imported:
    file = fleets.load(path)
    chosen = file.fleet.hypervisors
    if hypervisor is not None:
        if hypervisor not in chosen:
            raise NotFoundError(
                f"{path}: there is no hypervisor {hypervisor!r} (there is: {', '.join(chosen)})"
            )
        chosen = {hypervisor: chosen[hypervisor]}
    defaults = YAML(typ="safe").load(file.text).get("defaults") or {}
    return find(chosen, path.absolute().parent, names, declared=file.fleet.vms, defaults=defaults)


def _new_file(path: Path, config: HypervisorConfig, found: Imported) -> str:
    said = {key: str(value) for key, value in config.model_dump(exclude_unset=True).items()}
    name = _fleet_name(path.stem)
    said_so = name if YAML(typ="safe").load(name) == name else json.dumps(name)  # 2026 would be a number
    text = _NEW.format(fleet=said_so, file=name, hypervisor=json.dumps(said)) + _indented(_as_yaml(found))
    if found.vms:
        fleets.loads(text, path=path)  # what is written is valid, or all its problems are told
    return text


def _fleet_name(stem: str) -> str:
    """Return the part of a file's name that can name a fleet."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    name = "".join(letter for letter in plain if letter.isalnum() or letter in "._-").lstrip("._-")
    return name[:63] or "fleet"


def _add(document: CommentedMap, found: Imported) -> None:
    for name, section in found.vms.items():
        document["vms"][name] = _styled(section)


def _styled(section: Mapping[str, Any]) -> CommentedMap:
    """Return a section as a person would write it: a disk a line, short things in one."""
    made = CommentedMap()
    for key, value in section.items():
        if key == "disks":
            made[key] = CommentedSeq([flow_map(**disk) for disk in value])
        elif isinstance(value, list):
            made[key] = inline(value)
        else:
            made[key] = flow_map(**value) if isinstance(value, dict) else value
    return made


def _as_yaml(found: Imported) -> str:
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    written = io.StringIO()
    yaml.dump(CommentedMap({name: _styled(section) for name, section in found.vms.items()}), written)
    return written.getvalue() if found.vms else ""


def _indented(text: str) -> str:
    return "".join(f"  {line}" if line.strip() else line for line in text.splitlines(keepends=True))
