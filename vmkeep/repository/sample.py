"""A sample of what a disk is said to share with an earlier point, read again and compared.

Whoever says what changed may be wrong for reasons that nobody has thought of: another disk's image was copied
over this one, with all that it remembers. A chunk's id is a keyed hash of its bytes, so a few reads tell.
"""

from __future__ import annotations

import contextlib
import random
from itertools import chain
from typing import TYPE_CHECKING, Final

from vmkeep.errors import AccessError, IntegrityError
from vmkeep.repository.disk_plan import touched
from vmkeep.repository.parallel import in_order
from vmkeep.repository.save_disk import HOLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmkeep.disks.device import DiskSource, Extent
    from vmkeep.repository.manifest import DiskRef
    from vmkeep.repository.trees import Trees

_LEAVES: Final = 4
_BELOW_EACH: Final = 4
"""Chunks that are compared below each leaf."""


def deviation(
    source: DiskSource,
    parent: DiskRef,
    changed: Iterable[Extent],
    trees: Trees,
    *,
    chance: random.Random | None = None,
) -> int | None:
    """Return the offset of a chunk that differs from an earlier point though it is not among what changed.

    Some chunks are compared, not all. Who may not read the repository compares none.

    Raises:
        SourceError: the disk is not readable.
    """
    numbers = frozenset(chain.from_iterable(touched(changed, parent.chunk_size)))
    chosen = _chosen(parent, numbers, trees, chance or random.Random())  # noqa: S311  (no secret)

    def differs(one: tuple[int, bytes]) -> bool:
        offset, chunk = one
        data = bytearray(min(parent.chunk_size, parent.size - offset))
        source.read_into(offset, memoryview(data))
        return not trees.chunks.is_id(chunk, data)

    with contextlib.suppress(AccessError):
        wanted = [*chosen]
        found = zip(wanted, in_order(differs, wanted), strict=True)
        return next((offset for (offset, _), other in found if other), None)
    return None


def _chosen(
    parent: DiskRef, changed: frozenset[int], trees: Trees, chance: random.Random
) -> Iterator[tuple[int, bytes]]:
    """Yield offset and id of some chunks that hold data and are said to be what they were."""
    holding = [number for number, leaf in enumerate(parent.leaves) if leaf != HOLE]
    for leaf in chance.sample(holding, min(_LEAVES, len(holding))):
        try:
            ids = trees.disk_leaf(parent, leaf)
        except IntegrityError:  # it is not inherited either
            continue
        first = leaf * trees.fan
        kept = [
            (number * parent.chunk_size, one)
            for number, one in enumerate(ids, first)
            if one != HOLE and number not in changed
        ]
        yield from chance.sample(kept, min(_BELOW_EACH, len(kept)))
