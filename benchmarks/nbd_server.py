"""Serve a disk over NBD: vmkeep's server against qemu-nbd, on the same raw file, in the same run.

    python benchmarks/nbd_server.py [--rounds 5] [--folder FOLDER]

The client is `qemu-img bench`, which reads 1 GiB (less in small blocks) in order over a unix socket; the file
is in the page cache for both. `saved` is vmkeep serving the disk out of a repository in a local folder: every
byte is decrypted, decompressed and checked, and nothing is in memory at the beginning. Prints the medians,
MB/s, and how many times slower than qemu-nbd.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.disks.device import Extent
from vmkeep.disks.nbd_server import serving
from vmkeep.disks.raw import RawSource
from vmkeep.repository import Repository, Secret
from vmkeep.repository.manifest import SavedComponent
from vmkeep.stores import open_store
from vmkeep.testing.repositories import point
from vmkeep.units import GiB, KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.disks.nbd_server import Readable

KEY: Final = Secret.key(bytes(32))
# What is read: bytes at once, requests at the same time, bytes in all.
LOADS: Final = {
    "1 MiB, 16 at once": (MiB, 16, GiB),
    "64 KiB, 16 at once": (64 * KiB, 16, GiB),
    "4 KiB, 16 at once": (4 * KiB, 16, 256 * MiB),
    "4 KiB, one after the other": (4 * KiB, 1, 64 * MiB),
}


def make_disk(path: Path) -> None:
    """Make 1 GiB that compresses as file systems do: to about a half."""
    pick = random.Random(1)
    with path.open("wb") as file:
        for _ in range(1024):
            file.write(pick.randbytes(512 * KiB) + bytes(range(256)) * (2 * KiB))


def save(disk: Path, folder: Path) -> None:
    repository = Repository.init(open_store(str(folder)), KEY)
    with (
        RawSource(disk) as source,
        repository.begin(vm="disk", run="run", spool=folder.with_suffix(".spool")) as session,
    ):
        ref, stats = session.save_disk(source)
        session.record(SavedComponent("os", disks={"root": ref}, stats=stats))
        session.upload()
        session.seal(point(session.recorded(), "disk"))


class Raw(RawSource):
    """A raw file that is served: all of it holds data."""

    def extents_within(self, start: int, length: int) -> Iterator[Extent]:  # noqa: D102  (the Protocol's)
        yield Extent(start, length)


def serve(what: str, disk: Path, folder: Path, socket: Path) -> None:
    """Serve until the standard input ends; in a process of its own."""
    with contextlib.ExitStack() as stack:
        if what == "saved":
            repository = stack.enter_context(
                contextlib.closing(Repository.open(open_store(str(folder)), KEY))
            )
            ref = repository.point("disk").components["os"].disks["root"]
            served: Readable = stack.enter_context(repository.open_disk(ref))
        else:
            served = stack.enter_context(Raw(disk))
        stack.enter_context(serving({"root": served}, socket))
        sys.stdin.read()


@contextlib.contextmanager
def server(what: str, disk: Path, folder: Path) -> Iterator[str]:
    socket = folder.parent / f"{what}.sock"
    if what == "qemu-nbd":
        command = ["qemu-nbd", "-r", "-t", "-e", "8", "-f", "raw", "-x", "root", "-k", str(socket), str(disk)]
    else:
        command = [sys.executable, __file__, "--serve", what, str(disk), str(folder), str(socket)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        while not socket.exists():
            time.sleep(0.01)
        yield f"nbd+unix:///root?socket={socket}"
    finally:
        process.terminate()
        process.wait()
        socket.unlink(missing_ok=True)


def measure(url: str, load: str) -> float:
    """Return MB/s."""
    size, depth, total = LOADS[load]
    command = [
        "qemu-img",
        "bench",
        "-f",
        "raw",
        "-s",
        str(size),
        "-d",
        str(depth),
        "-c",
        str(total // size),
        url,
    ]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (seconds,) = re.findall(r"completed in ([\d.]+) seconds", told)
    return total / float(seconds) / 1e6


def compare(folder: Path, rounds: int) -> None:
    disk, repository = folder / "disk.raw", folder / "repository"
    make_disk(disk)
    save(disk, repository)
    print("| | qemu-nbd MB/s | vmkeep MB/s | x | saved MB/s | x |")
    print("|---|---|---|---|---|---|")
    for load in LOADS:
        found: dict[str, list[float]] = {"qemu-nbd": [], "raw": [], "saved": []}
        for _ in range(rounds):
            for what, rates in found.items():
                with server(what, disk, repository) as url:
                    rates.append(measure(url, load))
        peer, ours, saved = (statistics.median(rates) for rates in found.values())
        print(
            f"| {load} | {peer:.0f} | {ours:.0f} | {peer / ours:.2f} | {saved:.0f} | {peer / saved:.2f} |",
            flush=True,
        )
    print(f"\nLoad of the machine: {os.getloadavg()[0]:.1f} at the end.")


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        what, *paths = sys.argv[2:]
        serve(what, *map(Path, paths))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare(Path(folder), options.rounds)


if __name__ == "__main__":
    main()
