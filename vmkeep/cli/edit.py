"""Changes a fleet file as a person would: comments, order and quotes stay, and mistakes are not written."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import io
import os
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from vmkeep import fleet as fleets
from vmkeep.cli.new_file import new_file
from vmkeep.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vmkeep.fleet import FleetFile

_WIDTH = 4096
"""Lines are never broken anew."""


def edit(
    path: Path, change: Callable[[CommentedMap], None], check: Callable[[FleetFile], None] | None = None
) -> list[str]:
    """Let *change* alter the fleet file, and return the lines that differ, as `diff` shows them.

    The file is replaced as a whole, or not at all.

    Args:
        change: alters the document in place.
        check: raises when the fleet cannot become what the file would say.

    Raises:
        FleetError: the file is not valid, before or after the change.
        AccessError: it cannot be written.
    """
    with _alone(path):
        before = fleets.load(path).text  # valid, or all its problems are told
        yaml = YAML()
        yaml.preserve_quotes = True
        yaml.width = _WIDTH
        yaml.brace_single_entry_mapping_in_flow_sequence = True
        indent, offset = _style(before)
        yaml.indent(mapping=indent, sequence=offset + 2, offset=offset)
        document = yaml.load(before)
        change(document)
        written = io.StringIO()
        yaml.dump(document, written)
        after = written.getvalue()
        would_be = fleets.loads(after, path=path)
        if check is not None:
            check(would_be)
        if after != before:
            with new_file(path, overwrite=True) as file:
                file.write(after.encode())
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def machine(document: CommentedMap, name: str) -> CommentedMap:
    """Return what the file says of a VM; what YAML lets stand empty becomes a mapping.

    Raises:
        InputError: it does not declare it.
    """
    vms = document["vms"]
    if name not in vms:
        raise InputError(f"there is no VM {name!r} in the fleet file: 'vmcreate -n {name} -i ISO' makes it")
    if "<<" in document.get("vms", {}) or not isinstance(vms[name], dict):
        vms[name] = CommentedMap()
    found: CommentedMap = vms[name]
    return found


def items(vm: CommentedMap, key: str, inherited: list[Any]) -> CommentedSeq:
    """Return the list at *key* of a VM, to be altered.

    Args:
        inherited: what the VM has from the defaults, which a list of its own replaces.
    """
    if key not in vm:
        vm[key] = inline(inherited)
    found: CommentedSeq = vm[key]
    return found


def flow_map(**fields: Any) -> CommentedMap:
    """Return a mapping that is written in one line."""
    made = CommentedMap(fields)
    made.fa.set_flow_style()
    return made


def inline(values: list[Any]) -> CommentedSeq:
    """Return a list that is written in one line."""
    made = CommentedSeq(values)
    made.fa.set_flow_style()
    return made


def _style(text: str) -> tuple[int, int]:
    """Return by how much a file indents mappings, and the dashes of lists."""
    steps = [len(line) - len(line.lstrip(" ")) for line in text.splitlines() if line.startswith(" ")]
    indent = min((step for step in steps if step), default=2)
    dashes = [
        (len(before) - len(before.lstrip()), len(line) - len(line.lstrip()))
        for before, line in zip(text.splitlines(), text.splitlines()[1:], strict=False)
        if line.lstrip().startswith("- ") and before.rstrip().endswith(":")
    ]
    return indent, max(0, dashes[0][1] - dashes[0][0]) if dashes else indent


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let two commands change the file one after the other."""
    try:
        folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
