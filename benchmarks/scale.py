"""What a large repository costs: a disk of 1 TiB, and an index of 2.6 million chunks.

    python benchmarks/scale.py [--folder FOLDER] [--disk-tib 1] [--chunks 2600000]

The repository is made by hand: leaves and index are real, the packs with the data below them are not there.
Each measurement is a process of its own, from its start to its end: wall time, processor time, peak resident
memory.

    open      open the repository, load its index, and look 100 chunks up
    changed   back the disk of 1 TiB up again, with a list of changes in 64 places of 1 MiB
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vmkeep.disks.device import Extent
from vmkeep.repository import DiskRef, Point, Repository, SavedComponent, Secret, layout, sealed
from vmkeep.repository.committed import INDEX_KIND
from vmkeep.repository.index import ENTRY, Index, PackInfo
from vmkeep.stores import open_store
from vmkeep.units import KiB, MiB, TiB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

SECRET: Final = Secret.key(bytes(range(32)))
_PER_PACK: Final = 128


class Sparse:
    """A disk that is all zeros but for the blocks that are asked for; what it has costs nothing."""

    def __init__(self, size: int) -> None:
        self.size = size

    def extents(self) -> Iterator[Extent]:
        """Yield all of it."""
        yield Extent(0, self.size)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* with what nobody can compress."""
        buffer[:] = random.Random(offset).randbytes(len(buffer))

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def opened(folder: Path) -> Repository:
    return Repository.open(open_store(str(folder / "store")), SECRET, cache=folder / "cache")


def make(folder: Path, *, size: int, chunks: int) -> None:
    """Make a repository with one recovery point of a disk, and an index of so many chunks."""
    repository = Repository.init(open_store(str(folder / "store")), SECRET)
    fan, chunk = repository.format.disk_leaf, repository.format.disk_chunk
    ids = np.random.default_rng(1).integers(0, 256, (chunks, 32), np.uint8)
    used = size // chunk
    with repository.begin(vm="vm", run="first", spool=folder / "spool") as session:
        leaves = [
            session._packer.put(ids[at : at + fan].tobytes()).id  # noqa: SLF001  (there is no data to save)
            for at in range(0, used, fan)
        ]
        component = SavedComponent("os", {"root": DiskRef(size, chunk, tuple(leaves))})
        session.record(component)
        session.upload()
        name = session.id
        session.seal(_point({"os": component}))
    entries = np.zeros(chunks, ENTRY)
    entries["id"] = ids
    entries["pack"] = np.arange(chunks) // _PER_PACK
    entries["offset"] = np.arange(chunks) % _PER_PACK * 400 * KiB
    entries["stored"], entries["raw"] = 400 * KiB, chunk
    packs = [PackInfo(os.urandom(16), _PER_PACK * 400 * KiB) for _ in range(-(-chunks // _PER_PACK))]
    key = layout.index(name, 2)
    body = Index.build(packs, entries).encode()
    repository.store.put_if_absent(key, sealed.seal(repository.keys, INDEX_KIND, key, body))


def look_up(folder: Path) -> None:
    repository = opened(folder)
    index = repository.committed.refresh()
    for at in range(0, len(index), len(index) // 100):
        if index.locate(index.location(at).id) is None:
            raise SystemExit("a chunk is not found")


def changed(folder: Path) -> None:
    repository = opened(folder)
    parent = repository.point("vm").components["os"].disks["root"]
    step = parent.size // 64 // MiB * MiB
    ranges = [Extent(number * step, MiB) for number in range(64)]
    with (
        repository.begin(vm="vm", run=f"run-{time.time_ns()}", spool=folder / "spool") as session,
        Sparse(parent.size) as disk,
    ):
        ref, stats = session.save_disk(disk, parent=parent, changed=ranges)
        if stats.read != 64 * MiB:
            raise SystemExit(f"{stats.read} bytes were read instead of {64 * MiB}")
        component = SavedComponent("os", {"root": ref}, stats=stats)
        session.record(component)
        session.upload()
        session.seal(_point({"os": component}))


def _point(components: dict[str, SavedComponent]) -> Point:
    texts = dict.fromkeys(("vm", "session", "run", "fleet", "taken", "sealed", "group", "definition"), "")
    return Point(**texts, consistency="powered-off", components=components)


def measured(verb: str, folder: Path) -> tuple[float, float, int]:
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, __file__, "--do", verb, "--folder", str(folder)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{verb} ended with {process.returncode}")
    return time.monotonic() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * KiB


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--disk-tib", type=float, default=1.0)
    parser.add_argument("--chunks", type=int, default=2_600_000)
    parser.add_argument("--do", choices=["make", "open", "changed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do == "make":
        make(options.folder, size=int(options.disk_tib * TiB), chunks=options.chunks)
    elif options.do == "open":
        look_up(options.folder)
    elif options.do == "changed":
        changed(options.folder)
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            report(Path(temporary), options)


def report(folder: Path, options: argparse.Namespace) -> None:
    arguments = ["--disk-tib", str(options.disk_tib), "--chunks", str(options.chunks)]
    command = [sys.executable, __file__, "--do", "make", "--folder", str(folder), *arguments]
    subprocess.run(command, check=True)
    print(f"a disk of {format_size(int(options.disk_tib * TiB))}, an index of {options.chunks:,} chunks")
    print(f"{'':24} {'wall s':>8} {'cpu s':>8} {'peak':>10}")
    for label, verb in (
        ("open, the first time", "open"),
        ("open", "open"),
        ("open again", "open"),
        ("changed", "changed"),
        ("changed again", "changed"),
    ):
        wall, processor, memory = measured(verb, folder)
        print(f"{label:24} {wall:8.2f} {processor:8.2f} {format_size(memory):>10}")


if __name__ == "__main__":
    main()
