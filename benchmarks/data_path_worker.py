"""One operation of vmkeep's library in the current folder, as a process of its own: see `data_path.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from vmkeep.disks.raw import RawSource, RawTarget
from vmkeep.repository import Point, Repository, SavedComponent, Secret
from vmkeep.stores import DirectoryStore

STORE = DirectoryStore(Path("store"))
SECRET = Secret.passphrase("benchmark")


def save(disk: Path, *, tracked: bool) -> None:
    repository = Repository.open(STORE, SECRET)
    parent = repository.point("vm").components["os"].disks["root"] if tracked else None
    with repository.begin(vm="vm", run="run", spool=Path("spool")) as session:
        with RawSource(disk) as source:
            ref, stats = session.save_disk(source, parent=parent, changed=() if tracked else None)
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


def restore(path: Path) -> None:
    repository = Repository.open(STORE, SECRET)
    ref = repository.point("vm").components["os"].disks["root"]
    with RawTarget(path, size=ref.size) as target:
        repository.restore_disk(ref, target)


def main() -> None:
    match sys.argv[1:]:
        case ["init"]:
            Repository.init(STORE, SECRET)
        case ["save" | "tracked" as verb, disk]:
            save(Path(disk), tracked=verb == "tracked")
        case ["restore", path]:
            restore(Path(path))


if __name__ == "__main__":
    main()
