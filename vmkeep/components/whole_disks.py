"""Whole disks of a VM, saved and restored block by block."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from vmkeep.disks import images
from vmkeep.errors import InputError, NotFoundError, VmkeepError
from vmkeep.repository.manifest import SavedComponent, Stats

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmkeep.components.base import RestoreContext, SaveContext
    from vmkeep.disks.device import DiskSource, Extent
    from vmkeep.hypervisors.base import DiskState
    from vmkeep.repository.manifest import DiskRef

MARK: Final = "mark."
"""Before a disk's name: the fact that a later backup asks for the changes since by."""
DOUBT: Final = "doubt."
"""Before a disk's name: the fact why it was read in full though it was said what changed."""


def save_disks(context: SaveContext, disks: Sequence[str], facts: Mapping[str, str]) -> SavedComponent:
    """Save *disks* whole; holes are not read, nor what is known to be as in an earlier point."""
    refs, stats = {}, Stats()
    described = dict(facts)
    for state in context.machine.disks:
        if state.name not in disks:
            continue
        parent, changed = _inherited(context, state)
        with context.hypervisor.open_disk(context.machine, state.name) as source:
            # An image of our own fingerprint needs no proof; what others tell does.
            if parent is not None and changed is not None and state.since:
                offset = context.writer.deviation(source, parent, changed)
                if offset is not None:
                    described[f"{DOUBT}{state.name}"] = _doubt(state, offset)
                    parent = changed = None
            # The block ends only if the disk stayed what it was at the snapshot.
            refs[state.name], cost = context.writer.save_disk(
                source, parent=parent, changed=changed, progress=context.progress
            )
        stats += cost
        described[f"format.{state.name}"] = state.format
        if state.mark:
            described[f"{MARK}{state.name}"] = state.mark
    return SavedComponent(context.component, disks=refs, facts=described, stats=stats)


def mark_of(saved: SavedComponent, disk: str) -> str:
    """Return the mark that a disk had when it was saved, or nothing."""
    return saved.facts.get(f"{MARK}{disk}", "")


def doubts(saved: SavedComponent) -> list[str]:
    """Return one sentence for each disk that was not what it was said to be."""
    return [text for key, text in sorted(saved.facts.items()) if key.startswith(DOUBT)]


def _doubt(state: DiskState, offset: int) -> str:
    return (
        f"disk {state.name} is read in full: at {offset} it differs from the point of "
        f"{state.since}, though nothing is said to have been written there; its image is another one, or was "
        "written without the hypervisor's knowledge"
    )


def _inherited(context: SaveContext, state: DiskState) -> tuple[DiskRef | None, Sequence[Extent] | None]:
    """Return the disk in an earlier point, and what may have changed since; of none, if it is not known."""
    for parent in context.parents:
        ref, mark = parent.disks.get(state.name), mark_of(parent, state.name)
        if ref is None or not mark or ref.size != state.size:
            continue
        changed = context.hypervisor.changed(context.machine, state.name, mark)
        if changed is not None:
            return ref, changed
    return None, None


def restore_disks(context: RestoreContext, saved: SavedComponent) -> None:
    """Write the disks beside the VM's present ones, and put all in their place when all are complete."""
    if context.paths:
        raise InputError(
            f"{context.component} was saved as whole disks: single files of it are restored into a folder "
            "(--to), not into the VM"
        )
    if context.folder is not None:
        raise InputError(f"{context.component} was saved as whole disks: restore it into a VM, not a folder")
    if not saved.disks:
        raise NotFoundError(f"{context.component}: the recovery point holds no disk of it")
    try:
        for name, ref in saved.disks.items():
            format = saved.facts.get(f"format.{name}", "raw")  # noqa: A001  (the word of the fleet file)
            with (
                _present(context, name) as present,
                context.hypervisor.create_disk(context.name, name, size=ref.size, format=format) as target,
            ):
                context.reused(
                    context.reader.restore_disk(ref, target, present=present, progress=context.progress)
                )
                target.flush()
    except BaseException:
        # A disk that is full, for instance, is needed by others.
        context.hypervisor.discard_disks(context.name, tuple(saved.disks))
        raise
    context.hypervisor.commit_disks(context.name, tuple(saved.disks))


@contextlib.contextmanager
def _present(context: RestoreContext, disk: str) -> Iterator[DiskSource | None]:
    """Open the disk that is to be replaced, if there is one that can be read: it may hold much of the new.

    It may even change meanwhile: every chunk of it is checked, after it was read, by its id.
    """
    with contextlib.ExitStack() as stack:
        present: DiskSource | None = None
        # Whatever is the matter with a disk that is to be replaced, all of the new one is stored.
        with contextlib.suppress(VmkeepError):
            streams = context.hypervisor.streams
            if streams is None or not streams.behind(context.name):  # else it is read from the repository
                for image in context.hypervisor.images(context.name):
                    if image.disk == disk and not image.export:
                        what = f"VM {context.name}: disk {disk}"
                        present = stack.enter_context(images.reader(image.path, image.format, what=what))
        yield present
