"""Streams cut by content, so that what was inserted or removed moves no other cut.

FastCDC with a table that is changed by a key of the repository: cut points tell nothing about the content
to someone without the key. See: Xia et al., "The Design of Fast Content-Defined Chunking", 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyfastcdc import FastCDC

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmkeep.repository.crypto import Buffer
    from vmkeep.repository.format import Format

_AHEAD: Final = 4
"""How many of the largest chunks are gathered before they are cut."""


def cut(blocks: Iterable[Buffer], format_: Format, seed: int) -> Iterator[bytes]:
    """Yield the chunks of a stream, in order; the sizes of *blocks* do not matter."""
    cutter = FastCDC(
        format_.stream_average,
        min_size=format_.stream_least,
        max_size=format_.stream_most,
        normalized_chunking=1,
        seed=seed,
    )
    pending = bytearray()
    for block in blocks:
        pending += block
        if len(pending) >= _AHEAD * format_.stream_most:
            # A cut is final only if the largest chunk would have fitted: else more bytes could move it.
            last = len(pending) - format_.stream_most
            used = 0
            for chunk in cutter.cut_buf(pending):
                if chunk.offset > last:
                    break
                used = chunk.offset + chunk.length
                yield bytes(memoryview(pending)[chunk.offset : used])
            pending = pending[used:]  # a new one: the cutter may still look at the old
    for chunk in cutter.cut_buf(pending):
        yield bytes(memoryview(pending)[chunk.offset : chunk.offset + chunk.length])
