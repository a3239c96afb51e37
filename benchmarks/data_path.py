"""Back up and restore one disk: vmkeep's library against restic and borg, in the same run.

    python benchmarks/data_path.py [--rounds 3] [--disk system] [--folder FOLDER] [--only vmkeep]

Makes a sparse raw disk, and for each tool a repository in a local folder. The disk `system` has 4 GiB and an
ext4 of about 0.6 GB of this system's files; `mixed` has 2 GiB, in runs of 8 MiB: a quarter incompressible,
a quarter text, a quarter of files of this system, a quarter holes. Each measurement is one process from its
start to its end: wall time, processor time (user and system), peak resident memory. Restored bytes are
compared with the disk. Before `again` the disk is touched, so that every tool reads it once more instead of
trusting its date; `tracked` is vmkeep with a list of changed ranges, as a hypervisor that tracks changes
gives it (none changed), `start` the start of its process alone, and `bound` the naming, compressing and
encrypting alone, of the whole disk, without keeping anything. Before `changed` one in a hundred blocks of
1 MiB is another, anywhere on the disk; `changed+list` is vmkeep with the list of these ranges.
A restore is over when the disk is on stable storage: `sync` is part of what the other tools take. Its bound
is `unpack`, the reading, checking, decrypting and decompressing without a disk to write to, and `copy`, the
writing alone: `cp` of the disk itself.
Prints the medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.disks.raw import RawSource
from vmkeep.units import GiB, MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DISK: Final = 4 * GiB
DATA: Final = 620 * MiB
SOURCES: Final = ("/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share", "/usr/lib")
PASSWORD: Final = "benchmark"  # noqa: S105  (of a throw-away repository)
_OTHER: Final = bytes(byte ^ 0xA5 for byte in range(256))
"""Each byte's other one: twice gives the byte again."""
WORKER: Final = Path(__file__).with_name("data_path_worker.py")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process took."""

    wall: float
    processor: float
    memory: int
    server: float = 0.0
    """Processor time of a server meanwhile."""


@dataclass(frozen=True, slots=True)
class Tool:
    """How a tool is called, each in a folder of its own.

    `{disk}` is the path of the disk, `{folder}` the name of the folder.
    """

    name: str
    init: list[str]
    save: list[str]
    restore: list[str]
    restored: str
    """Where the restored disk is then; `{bare}` is the path of the disk without the leading slash."""
    stored: Callable[[Path], int]
    """Returns the bytes in the repository; is given the folder."""
    extra: Mapping[str, list[str]] = field(default_factory=dict)
    """What only this tool does, by name."""
    after_changes: Mapping[str, list[str]] = field(default_factory=dict)
    """The same, of a disk that was changed; the ranges are in the file `changes`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    server: int | None = None
    """The process id of the server that keeps the repository."""

    @property
    def folder(self) -> str:
        """The beginning of the names of its folders."""
        return self.name.replace(" ", "-")


def vmkeep(store: str, stored: Callable[[Path], int], environment: Mapping[str, str]) -> Tool:
    worker = [sys.executable, str(WORKER), store]
    return Tool(
        "vmkeep",
        [*worker, "init"],
        [*worker, "save", "{disk}"],
        [*worker, "restore", "restored"],
        "restored",
        stored,
        {
            "start": [*worker, "start"],
            "tracked": [*worker, "tracked", "{disk}"],
            "bound": [*worker, "bound", "{disk}"],
            "unpack": [*worker, "unpack"],
            "copy": ["sh", "-c", "cp --sparse=auto {disk} copied && sync -d copied"],
        },
        {"changed+list": [*worker, "tracked", "{disk}", "changes"]},
        # As the command does it for itself.
        {"OPENBLAS_NUM_THREADS": "1", **environment},
    )


def restic(store: str, stored: Callable[[Path], int], environment: Mapping[str, str]) -> Tool:
    command = ["restic", "-q", "-r", store]
    return Tool(
        "restic",
        [*command, "init"],
        [*command, "backup", "{disk}"],
        [
            "sh",
            "-c",
            f"{shlex.join([*command, 'restore', 'latest', '--target', 'out'])} && sync -d out/{{bare}}",
        ],
        "out/{bare}",
        stored,
        environment=environment,
    )


def tools() -> list[Tool]:
    def stored(folder: Path) -> int:
        return sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())

    last = "borg list --last 1 --format '{{archive}}' store"
    return [
        vmkeep("store", stored, {}),
        restic("store", stored, {}),
        *(
            Tool(
                f"borg zstd,{level}",
                ["borg", "init", "-e", "repokey-blake2", "store"],
                ["borg", "create", "-C", f"zstd,{level}", "store::{{now:%s.%f}}", "{disk}"],
                ["sh", "-c", f"borg extract --sparse store::$({last}) && sync -d {{bare}}"],
                "{bare}",
                stored,
            )
            for level in (1, 2)
        ),
    ]


def measured(
    command: list[str], folder: Path, environment: Mapping[str, str], server: int | None = None
) -> Cost:
    """Run *command* in *folder*, and return what it took: itself, and a *server* by its process id."""
    os.sync()
    spent = _processor_time(server)
    secrets = {"RESTIC_PASSWORD": PASSWORD, "BORG_PASSPHRASE": PASSWORD}
    caches = {"XDG_CACHE_HOME": str(folder / "cache"), "BORG_BASE_DIR": str(folder / "borg")}
    # Modules that are compiled at each start are not what anybody runs.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.monotonic()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command,
            env={**inherited, **secrets, **caches, **environment},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}: {(folder / 'log').read_text()}")
    own = usage.ru_utime + usage.ru_stime + _left_behind()
    return Cost(wall, own, usage.ru_maxrss * 1024, _processor_time(server) - spent)


def adopt_daemons() -> None:
    """Become the parent of the daemons that a tool starts, so that what they compute is counted as well.

    See PR_SET_CHILD_SUBREAPER in prctl(2).
    """
    if ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _left_behind() -> float:
    """Return the processor time of the daemons that ended meanwhile and were left to us."""
    time.sleep(0.3)
    total = 0.0
    with contextlib.suppress(ChildProcessError):
        while (ended := os.wait4(-1, os.WNOHANG))[0]:
            total += ended[2].ru_utime + ended[2].ru_stime
    return total


def _processor_time(process: int | None) -> float:
    """Return the seconds that all threads of a process have computed; see proc_pid_stat(5)."""
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_mixed(folder: Path) -> Path:
    """Return a sparse disk with runs of random bytes, text, and files of this system, and holes.

    It is made in small pieces: a process begins with the peak of memory of the one that started it.
    """
    disk, run = folder / "disk.raw", 8 * MiB
    draw = random.Random(1)
    words = ("error", "warning", "info", "query", "session", "connection", "transaction")
    programs = _bytes_of(_files())
    with disk.open("wb") as file:
        file.truncate(2 * GiB)
        for number in range(2 * GiB // run // 4):
            file.seek(number * 4 * run)
            for _ in range(run // MiB):
                file.write(draw.randbytes(MiB))
            for _ in range(run // MiB):
                lines = (f"{draw.randrange(10**6)} {draw.choice(words)}\n" for _ in range(MiB // 12))
                file.write("".join(lines).encode().ljust(MiB, b"\n")[:MiB])
            for _ in range(run // MiB):
                file.write(next(programs))
    return disk


def _bytes_of(paths: Iterator[Path]) -> Iterator[bytes]:
    """Yield the content of files, one behind another, in pieces of 1 MiB."""
    left = b""
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(MiB - len(left)):
                left += part
                if len(left) == MiB:
                    yield left
                    left = b""


def change(disk: Path) -> list[tuple[int, int]]:
    """Make one in a hundred blocks of 1 MiB that hold data another; a second call takes it back."""
    with RawSource(disk) as source:
        extents = [*source.extents()]
    blocks = [at for each in extents for at in range(-(-each.start // MiB) * MiB, each.end - MiB + 1, MiB)]
    chosen = blocks[7::100]
    with disk.open("r+b") as file:
        for at in chosen:
            file.seek(at)
            block = file.read(MiB)
            file.seek(at)
            file.write(block.translate(_OTHER))
    return [(at, MiB) for at in chosen]


def make_disk(folder: Path) -> Path:
    """Return a sparse disk whose ext4 holds files of this system."""
    disk, files = folder / "disk.raw", folder / "files"
    files.mkdir()
    left = DATA
    for path in _files():
        size = path.stat().st_size
        if size <= left:
            target = files / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            left -= size
    with disk.open("wb") as file:
        file.truncate(DISK)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(files), str(disk)], check=True)
    shutil.rmtree(files)
    return disk


def _files() -> Iterator[Path]:
    for source in SOURCES:
        for folder, _, names in os.walk(source):
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink():
                    yield path


def run(tool: Tool, disk: Path, folder: Path) -> dict[str, Cost | int]:
    """Measure all operations of one tool in a new *folder*."""
    folder.mkdir()
    bare = str(disk).lstrip("/")

    def call(command: list[str]) -> Cost:
        return measured(
            [part.format(disk=disk, folder=folder.name, bare=bare) for part in command],
            folder,
            tool.environment,
            tool.server,
        )

    costs: dict[str, Cost | int] = {"init": call(tool.init), "full": call(tool.save)}
    costs["stored"] = tool.stored(folder)
    os.utime(disk)
    costs["again"] = call(tool.save)
    costs |= {name: call(command) for name, command in tool.extra.items()}
    (folder / "changes").write_text(json.dumps(change(disk)))
    costs |= {name: call(command) for name, command in tool.after_changes.items()}
    costs["changed"] = call(tool.save)
    change(disk)
    call(tool.save)
    costs["restore"] = call(tool.restore)
    restored = folder / tool.restored.format(bare=bare)
    subprocess.run(["cmp", str(disk), str(restored)], check=True)
    costs["allocated"] = restored.stat().st_blocks * 512
    shutil.rmtree(folder)
    return costs


def main() -> None:
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        compare(tools(), Path(temporary), options)


def arguments(description: str | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", choices=["system", "mixed"], default="system")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--only", help="the name of one tool")
    return parser.parse_args()


def compare(tools: list[Tool], folder: Path, options: argparse.Namespace) -> None:
    """Measure the tools, one after the other in each round, and print the report."""
    for command in (["restic", "version"], ["borg", "--version"]):
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    disk = make_disk(folder) if options.disk == "system" else make_mixed(folder)
    size, allocated = disk.stat().st_size, disk.stat().st_blocks * 512
    print(f"disk: {format_size(size)}, {format_size(allocated)} of it allocated")
    chosen = [tool for tool in tools if options.only in (None, tool.name)]
    report(
        [
            {tool.name: run(tool, disk, folder / f"{tool.folder}-{number}") for tool in chosen}
            for number in range(options.rounds)
        ]
    )
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def report(rounds: list[dict[str, dict[str, Cost | int]]]) -> None:
    """Print the medians, and how vmkeep compares."""
    print(
        f"{'':12} {'':13} {'wall s':>8} {'cpu s':>8} {'peak':>10} {'wall x':>7} {'cpu x':>7} {'server s':>9}"
    )
    operations = dict.fromkeys(
        operation
        for costs in rounds[0].values()
        for operation, cost in costs.items()
        if isinstance(cost, Cost) and operation != "init"
    )
    for operation in operations:
        ours: Cost | None = None
        for name in rounds[0]:
            costs = [cost for each in rounds if isinstance(cost := each[name].get(operation), Cost)]
            if costs:
                cost = Cost(
                    statistics.median(each.wall for each in costs),
                    statistics.median(each.processor for each in costs),
                    max(each.memory for each in costs),
                    statistics.median(each.server for each in costs),
                )
                ours = ours or cost
                print(
                    f"{operation:12} {name:13} {cost.wall:8.2f} {cost.processor:8.2f}"
                    f" {format_size(cost.memory):>10}"
                    f" {cost.wall / ours.wall:7.1f} {cost.processor / ours.processor:7.1f}"
                    + (f" {cost.server:9.2f}" if cost.server else "")
                )
    for name, costs in rounds[-1].items():
        for what, amount in costs.items():
            if isinstance(amount, int):
                print(f"{what:12} {name:13} {format_size(amount):>12}")


if __name__ == "__main__":
    main()
