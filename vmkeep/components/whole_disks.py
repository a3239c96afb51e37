"""Whole disks of a VM, saved and restored block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.errors import InputError, NotFoundError
from vmkeep.repository.manifest import SavedComponent, Stats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmkeep.components.base import RestoreContext, SaveContext


def save_disks(context: SaveContext, disks: Sequence[str], facts: Mapping[str, str]) -> SavedComponent:
    """Save *disks* whole; holes are not read, and what an earlier point has is not stored again."""
    refs, stats = {}, Stats()
    described = dict(facts)
    for name in disks:
        parent = context.parent.disks.get(name) if context.parent else None
        with context.hypervisor.open_disk(context.machine, name) as source:
            # The block ends only if the disk stayed what it was at the snapshot.
            refs[name], cost = context.writer.save_disk(source, parent=parent, progress=context.progress)
        stats += cost
        described[f"format.{name}"] = next(s.format for s in context.machine.disks if s.name == name)
    return SavedComponent(context.component, disks=refs, facts=described, stats=stats)


def restore_disks(context: RestoreContext, saved: SavedComponent) -> None:
    """Write the disks beside the VM's present ones, and put all in their place when all are complete."""
    if context.paths:
        raise InputError(
            f"{context.component} was saved as whole disks: single files cannot be taken from it; "
            "restore it under another name and copy them from there"
        )
    if context.folder is not None:
        raise InputError(f"{context.component} was saved as whole disks: restore it into a VM, not a folder")
    if not saved.disks:
        raise NotFoundError(f"{context.component}: the recovery point holds no disk of it")
    try:
        for name, ref in saved.disks.items():
            format = saved.facts.get(f"format.{name}", "raw")  # noqa: A001  (the word of the fleet file)
            with context.hypervisor.create_disk(context.name, name, size=ref.size, format=format) as target:
                context.reader.restore_disk(ref, target, progress=context.progress)
                target.flush()
    except BaseException:
        # A disk that is full, for instance, is needed by others.
        context.hypervisor.discard_disks(context.name, tuple(saved.disks))
        raise
    context.hypervisor.commit_disks(context.name, tuple(saved.disks))
