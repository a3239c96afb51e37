"""One operation of vmkeep's library in the current folder, as a process of its own: see `data_path.py`.

python data_path_worker.py STORE init
python data_path_worker.py STORE start              only open it
python data_path_worker.py STORE save DISK
python data_path_worker.py STORE tracked DISK [CHANGES]     a file with the ranges that changed, as JSON
python data_path_worker.py STORE restore PATH
python data_path_worker.py STORE unpack             the same, and nothing is written
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from vmkeep.disks.device import Extent
from vmkeep.disks.raw import RawSource, RawTarget
from vmkeep.repository import Point, Repository, SavedComponent, Secret
from vmkeep.repository.codec import compress
from vmkeep.repository.disk_plan import ChunkRead, allocated
from vmkeep.repository.parallel import for_each
from vmkeep.stores import S3Options, open_store

STORE = open_store(sys.argv[1], s3=S3Options(os.environ.get("S3_ENDPOINT")))
SECRET = Secret.key(bytes(range(32)))  # a key file, as `vmkeep init` makes it


def save(disk: Path, changed: list[Extent] | None) -> None:
    repository = Repository.open(STORE, SECRET)
    parent = None if changed is None else repository.point("vm").components["os"].disks["root"]
    with repository.begin(vm="vm", run="run", spool=Path("spool")) as session:
        with RawSource(disk) as source:
            ref, stats = session.save_disk(source, parent=parent, changed=changed)
        component = SavedComponent("os", {"root": ref}, stats=stats)
        session.record(component)
        session.upload()
        session.seal(
            Point(
                vm="vm",
                session="",
                run="",
                fleet="",
                taken="",
                sealed="",
                group="",
                consistency="powered-off",
                definition="",
                components={"os": component},
            )
        )


def bound(disk: Path) -> None:
    repository = Repository.open(STORE, SECRET)
    size = repository.format.disk_chunk
    cipher = repository.keys.newest.pack_cipher(bytes(16))
    local, zeros = threading.local(), bytes(size)
    with RawSource(disk) as source:

        def work(read: ChunkRead) -> None:
            if not hasattr(local, "data"):
                local.data = bytearray(size)
            data: bytearray = local.data
            for piece in read.pieces:
                at = piece.start - read.number * size
                source.read_into(piece.start, memoryview(data)[at : at + piece.length])
            if data == zeros:
                return
            repository.keys.newest.chunk_id(data)
            cipher.encrypt(read.number.to_bytes(12, "big"), compress(data)[0], b"")

        for_each(work, allocated(source.extents(), size))


def restore(path: Path) -> None:
    repository = Repository.open(STORE, SECRET)
    ref = repository.point("vm").components["os"].disks["root"]
    with RawTarget(path, size=ref.size) as target:
        repository.restore_disk(ref, target)


class Nowhere:
    """A disk that keeps nothing."""

    fresh = True

    def __init__(self, size: int) -> None:
        self.size = size

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Keep nothing."""

    def zero(self, offset: int, length: int) -> None:
        """Keep nothing."""

    def flush(self) -> None:
        """Keep nothing."""


def unpack() -> None:
    repository = Repository.open(STORE, SECRET)
    ref = repository.point("vm").components["os"].disks["root"]
    repository.restore_disk(ref, Nowhere(ref.size))


def main() -> None:
    match sys.argv[2:]:
        case ["init"]:
            Repository.init(STORE, SECRET)
        case ["start"]:
            Repository.open(STORE, SECRET)
        case ["save", disk]:
            save(Path(disk), None)
        case ["tracked", disk]:
            save(Path(disk), [])
        case ["tracked", disk, changes]:
            save(Path(disk), [Extent(*each) for each in json.loads(Path(changes).read_text())])
        case ["bound", disk]:
            bound(Path(disk))
        case ["restore", path]:
            restore(Path(path))
        case ["unpack"]:
            unpack()


if __name__ == "__main__":
    main()
