"""How long a group of running VMs stands still, and what a run of three costs beside reading.

    python benchmarks/group.py [--runs 10] [--folder FOLDER]

Three tiny guests with the guest agent run under a libvirt daemon of the benchmark's own, without KVM if
there is none, and write all the time. They are one consistency group, and are saved again and again while
little changes. Prints for how long the guest that stood longest stood still, how far apart the three were
captured, and how long a run took: by itself (`--direct`) and as a Prefect flow, both as processes from start
to end, the flow with its own server each time, as without `vmkeep up`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from data_path import measured

from vmkeep.errors import TemporaryError
from vmkeep.guests.agent import AgentGuest
from vmkeep.testing import tiny_guest
from vmkeep.testing.guests import Volume, build_filesystem
from vmkeep.testing.libvirtd import libvirtd
from vmkeep.testing.rack import Rack
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Sequence

VMS: Final = ("db1", "app1", "web1")
FLEET: Final = """\
vms:
  db1: {disks: [{name: root, size: 32MiB}], guest: {agent: true}}
  app1: {disks: [{name: root, size: 32MiB}], guest: {agent: true}, depends_on: [db1]}
  web1: {disks: [{name: root, size: 32MiB}], guest: {agent: true}, depends_on: [app1]}
consistency_groups: {shop: {vms: [db1, app1, web1]}}
"""
WRITE: Final = (
    "#!/bin/sh\nwhile :; do date > /data/next && mv /data/next /data/now && sync; usleep 100000; done\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        tempfile.TemporaryDirectory(prefix="libvirtd.") as sockets,  # a short path
        libvirtd(Path(sockets)) as daemon,
    ):
        os.environ["VMKEEP_STATE"] = f"{folder}/state"
        daemon.define_pool("default")
        rack = Rack(Path(folder), daemon, FLEET)
        start(rack)
        vmkeep = [str(Path(sys.executable).with_name("vmkeep")), "backup", "--fleet", str(rack.path)]
        measured([*vmkeep, "--direct"], rack.folder, {})  # in full
        direct = [measured([*vmkeep, "--direct"], rack.folder, {}).wall for _ in range(options.runs)]
        prefect = {"PREFECT_HOME": f"{folder}/prefect"}
        measured(vmkeep, rack.folder, prefect)  # the first makes its database
        flows = [measured(vmkeep, rack.folder, prefect).wall for _ in range(3)]
        points = rack.points("db1")[1:]
        tell("stood still", [point.frozen for point in points])
        tell("captured within", [point.skew for point in points])
        tell("a run, --direct", direct)
        tell("a run, Prefect", flows)
        print(f"consistency: {', '.join(sorted({point.consistency for point in points}))}")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def start(rack: Rack) -> None:
    """Fill the disks, and boot; returns when all three answer."""
    tree = rack.folder / "tree"
    tree.mkdir()
    (tree / "boot").write_text(WRITE)
    (tree / "boot").chmod(0o755)
    build_filesystem(rack.folder / "disk.raw", Volume(tree, size=32 * MiB))
    shutil.rmtree(tree)
    files = tiny_guest.build(rack.folder)
    for vm in VMS:
        rack.fill(vm, "root", rack.folder / "disk.raw")
        rack.boot_from(vm, files)
        rack.domain(vm).create()
    for vm in VMS:
        guest, deadline = AgentGuest(rack.hypervisor.agent(vm), name=vm), time.monotonic() + 120
        while True:
            try:
                guest.ping(timeout_s=1)
                break
            except TemporaryError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


def tell(what: str, seconds: Sequence[float]) -> None:
    """Print the median and the maximum."""
    median, most = statistics.median(seconds), max(seconds)
    print(f"{what:16} median {median:6.2f} s   max {most:6.2f} s   of {len(seconds)}")


if __name__ == "__main__":
    main()
