"""From "restore" to "the guest answers": instantly, and in full, of the same VM in the same run.

    python benchmarks/instant.py [--rounds 3] [--size 2] [--folder FOLDER]

A VM on a libvirt daemon of its own, with a disk of SIZE GiB that boots by itself and has as much data on it
as fits, is saved into a repository in a local folder and restored under other names, by turns. Without KVM
the guest's processor is emulated, and most of the time is its boot. Prints the medians in seconds.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import libvirt

from vmkeep.operations.direct import run_direct
from vmkeep.operations.engine import Silent
from vmkeep.testing import tiny_guest
from vmkeep.testing.boot_disk import build_boot_disk
from vmkeep.testing.libvirtd import libvirtd
from vmkeep.testing.rack import Rack
from vmkeep.units import GiB, KiB, MiB

if TYPE_CHECKING:
    from vmkeep.operations.report import StepReport
    from vmkeep.planning import Outcome, Step

VMS: Final = """\
vms:
  db1:
    memory: 256MiB
    disks: [{{name: root, size: {size}MiB}}]
    guest: {{agent: true}}
    health: [{{agent: true, timeout: 300s}}]
"""
_ROOM: Final = 64 * MiB
"""For the file system itself, and the kernel."""


class Stopwatch(Silent):
    """Notes when steps are over."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.after: dict[str, float] = {}

    def ended(self, step: Step, outcome: Outcome, report: StepReport | None) -> None:  # noqa: ARG002
        """Note when."""
        self.after[step.verb.value] = time.monotonic() - self.since


def fill(tree: Path, size: int) -> None:
    """Make files that compress as those of a server do: to about a half."""
    tree.mkdir()
    pick = random.Random(1)
    for number in range(size // (16 * MiB)):
        with (tree / f"data{number}").open("wb") as file:
            for _ in range(16):
                file.write(pick.randbytes(512 * KiB) + bytes(range(256)) * (2 * KiB))


def restore(rack: Rack, name: str, *, instant: bool) -> dict[str, float]:
    """Restore the VM, and return after how many seconds each step was over."""
    watch = Stopwatch()
    report = run_direct(rack.request("restore", rename={"db1": name}, instant=instant), observer=watch)
    if report.exit_code:
        raise SystemExit(f"{report.summary.sentence}")
    domain = rack.domain(name)
    domain.destroy()
    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    for path in (rack.daemon.pools / "default").glob(f"{name}-*"):
        path.unlink()
    return watch.after


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=float, default=2.0, help="GiB")
    parser.add_argument("--folder", type=Path, help="for all files; by default that for temporary files")
    chosen = parser.parse_args()
    size = int(chosen.size * GiB) // MiB * MiB
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="bench.") as where:
        folder = Path(where)
        os.environ["VMKEEP_STATE"] = str(folder / "state")
        (folder / "d").mkdir()
        with libvirtd(folder / "d") as daemon:
            daemon.define_pool("default")
            rack = Rack(folder, daemon, VMS.format(size=size // MiB))
            fill(folder / "tree", size - size // 16 - _ROOM)
            build_boot_disk(folder / "boot.raw", folder / "tree", tiny_guest.build(folder), size=size)
            rack.fill("db1", "root", folder / "boot.raw")
            rack.run("backup")
            found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
            for number in range(chosen.rounds):
                for instant in (True, False):
                    name = f"{'i' if instant else 'f'}{number}"
                    found[instant].append(restore(rack, name, instant=instant))
                    print(name, found[instant][-1], file=sys.stderr)
    _print(found)


def _print(found: dict[bool, list[dict[str, float]]]) -> None:
    def median(instant: bool, step: str) -> float:  # noqa: FBT001
        return statistics.median(one[step] for one in found[instant])

    print("| seconds from the command until | instant | full | x |\n|---|---|---|---|")
    whole = {True: "stream", False: "restore"}
    for text, steps in (
        ("the VM is powered on", {True: "start", False: "start"}),
        ("the guest answers", {True: "health", False: "health"}),
        ("all data is in place", whole),
    ):
        instant, full = median(True, steps[True]), median(False, steps[False])
        print(f"| {text} | {instant:.1f} | {full:.1f} | {full / instant:.1f} |")
    print(f"\nload of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
