"""Restore a disk in place, of which little or all differs, against a full restore, in the same run.

    python benchmarks/in_place.py [--rounds 3] [--folder FOLDER]

The disk is `system` of `data_path.py` (4 GiB, about 0.6 GB in it). It is saved into a repository in a local
folder, and into one in a SeaweedFS server that runs on this machine; the first is read again as if it were
behind a line of 200 Mbit/s on which each request waits for 30 ms. Restored is, by turns: all of it
(`full`); over a present disk in which one in a hundred blocks of 1 MiB is another (`1 %`); over one that
holds as much other data (`all`). The new disk is a file of its own each time, and is on stable storage in the
end. Prints medians: wall and processor time of this process, and what was fetched.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from data_path import arguments, change, make_disk

from vmkeep.disks.raw import RawSource, RawTarget
from vmkeep.repository import Repository, SavedComponent, Secret
from vmkeep.stores import open_store
from vmkeep.testing.repositories import point
from vmkeep.testing.seaweed import seaweed
from vmkeep.units import MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmkeep.stores import Store

SECRET = Secret.key(bytes(range(32)))
LATENCY_S: Final = 0.03
LINE: Final = 25_000_000
"""Bytes a second: 200 Mbit/s."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one restore took."""

    wall: float
    processor: float
    fetched: int
    """Bytes of the disk that came from the repository."""


class Far:
    """A store behind a line that all requests share."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._line = threading.Lock()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Wait as long as it would take."""
        time.sleep(LATENCY_S)
        body = self._store.get(key, start, length)
        with self._line:
            time.sleep(len(body) / LINE)
        return body


def save(store: Store, disk: Path, folder: Path) -> None:
    """Make a repository, and save the disk into it."""
    with (
        contextlib.closing(Repository.init(store, SECRET)) as repository,
        repository.begin(vm="db1", run="run-1", spool=folder / "spool") as session,
        RawSource(disk) as source,
    ):
        ref, stats = session.save_disk(source)
        session.record(SavedComponent("os", {"root": ref}, stats=stats))
        session.upload()
        session.seal(point(session.recorded()))


def restore(store: Store, target: Path, present: Path | None) -> Cost:
    """Restore the disk into a new file."""
    wall, processor = time.monotonic(), time.process_time()
    with contextlib.ExitStack() as stack:
        repository = stack.enter_context(contextlib.closing(Repository.open(store, SECRET)))
        ref = repository.point("db1").components["os"].disks["root"]
        source = stack.enter_context(RawSource(present)) if present is not None else None
        reused = repository.restore_disk(
            ref, stack.enter_context(RawTarget(target, size=ref.size)), present=source
        )
        wall, processor = time.monotonic() - wall, time.process_time() - processor
        held = sum(1 for _ in repository.trees.disk_chunks(ref)) * ref.chunk_size
    target.unlink()
    return Cost(wall, processor, held - reused)


def presents(disk: Path, folder: Path) -> Mapping[str, Path | None]:
    """Return what is restored over, by name."""
    little, other = folder / "little.raw", folder / "other.raw"
    for copy in (little, other):
        subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
    change(little)
    with RawSource(disk) as source, other.open("r+b") as file:
        for extent in source.extents():
            for start in range(extent.start, extent.end, MiB):
                file.seek(start)
                file.write(os.urandom(min(MiB, extent.end - start)))
    return {"full": None, "1 %": little, "all": other}


def main() -> None:
    """Measure, and print a table."""
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        disk = make_disk(folder)
        over = presents(disk, folder)
        with seaweed(folder / "seaweed") as server:
            stores = {
                "folder": open_store(str(folder / "repository")),
                "SeaweedFS": open_store(f"s3://{server.new_bucket()}/r", s3=server.options),
            }
            print("| repository | what differs | wall s | cpu s | fetched | x of full |")
            print("|---|---|---|---|---|---|")
            for name, store in stores.items():
                save(store, disk, folder / name)
            stores["far (simulated)"] = cast("Store", Far(stores["folder"]))
            for name, store in stores.items():
                found: dict[str, list[Cost]] = {what: [] for what in over}
                for number in range(options.rounds):
                    for what, present in over.items():
                        found[what].append(restore(store, folder / "new.raw", present))
                        print(name, number, what, found[what][-1], file=sys.stderr)
                full = statistics.median(one.wall for one in found["full"])
                for what, costs in found.items():
                    wall = statistics.median(one.wall for one in costs)
                    processor = statistics.median(one.processor for one in costs)
                    fetched = format_size(costs[-1].fetched)
                    print(
                        f"| {name} | {what} | {wall:.2f} | {processor:.2f} | {fetched} | {wall / full:.2f} |"
                    )
            for store in stores.values():
                store.close()
    print(f"\nload of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
