"""Back up and restore a running VM: vmkeep against virtnbdbackup, in the same run.

    python benchmarks/libvirt_path.py [--rounds 3] [--folder FOLDER]

A libvirt daemon of the benchmark's own runs two VMs that are alike and execute nothing: their disks (qcow2,
4 GiB, with an ext4 of about 0.6 GB of this system's files, as in `data_path.py`) lie behind QEMU, and are
read over its NBD server by both. `full` is the first backup, `incremental` the one after 40 blocks of 1 MiB,
anywhere on the disk, were written; `restore` writes the newest state into a new image, and is over when that
is on stable storage. Each is one process from its start to its end: wall time, processor time, peak memory.
The VM's QEMU is counted for neither, daemons that they start (qemu-nbd, qemu-storage-daemon) for both.
Restored images are compared with the disk. virtnbdbackup compresses with lz4 (`-z`) and encrypts nothing;
vmkeep runs without Prefect, and compresses, encrypts, names and reads back as always. Needs root, and the
package virtnbdbackup.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from data_path import DISK, Cost, adopt_daemons, make_disk, measured, report

from vmkeep.operations import repositories
from vmkeep.repository import Repository
from vmkeep.testing.libvirtd import libvirtd
from vmkeep.testing.rack import Rack
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCKS: Final = 40
FLEET: Final = f"""\
vms:
  ours: {{disks: [{{name: root, size: {DISK // MiB}MiB}}]}}
  theirs: {{disks: [{{name: root, size: {DISK // MiB}MiB}}]}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    options = parser.parse_args()
    version = subprocess.run(["virtnbdbackup", "--version"], check=True, capture_output=True, text=True)
    print("virtnbdbackup", version.stdout.strip())
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        tempfile.TemporaryDirectory(prefix="libvirtd.") as sockets,  # a short path
        libvirtd(Path(sockets)) as daemon,
    ):
        os.environ["VMKEEP_STATE"] = f"{folder}/state"
        daemon.define_pool("default", Path(folder) / "pool")
        rack = Rack(Path(folder), daemon, FLEET)
        disk = make_disk(Path(folder))
        for vm in ("ours", "theirs"):
            rack.fill(vm, "root", disk)
            rack.pause(vm)
        disk.unlink()
        adopt_daemons()  # only now: the VMs' QEMU is libvirt's to watch
        report([{"vmkeep": ours(rack, number), "virtnbdbackup": theirs(rack, number)}
                for number in range(options.rounds)])  # fmt: skip
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def ours(rack: Rack, number: int) -> dict[str, Cost | int]:
    """Measure vmkeep, with a repository of its own."""
    shutil.rmtree(rack.folder / "repository")
    forget_checkpoints(rack, "ours")
    Repository.init(repositories.store_of(rack.file), repositories.secret_of(rack.file)).close()
    vmkeep = [str(Path(sys.executable).with_name("vmkeep"))]
    backup = [*vmkeep, "backup", "ours", "--direct", "--fleet", str(rack.path)]
    out = rack.folder / f"ours-{number}"
    restore = [*vmkeep, "rescue", str(rack.folder / "repository"), "--key-file", str(rack.folder / "key"),
               "restore", "ours", "--to", str(out)]  # fmt: skip
    costs = call(rack, "ours", number, [backup, backup, restore])
    check(rack, "ours", out / "ours" / "root.qcow2")
    return {**costs, "stored": size_of(rack.folder / "repository")}


def theirs(rack: Rack, number: int) -> dict[str, Cost | int]:
    """Measure virtnbdbackup, with a folder of its own."""
    folder, out = rack.folder / f"backup-{number}", rack.folder / f"theirs-{number}"
    forget_checkpoints(rack, "theirs")
    # It knows a local daemon by its usual place only.
    place = f"mount --make-rprivate / && mount --bind {rack.daemon.folder}/run /run/libvirt"
    backup = f"exec virtnbdbackup -n -d theirs -z -o {folder}"
    restore = f"virtnbdrestore -n -i {folder} -o {out} -a restore && sync {out}/*"
    commands = [f"{backup} -l full", f"{backup} -l inc", restore]
    costs = call(
        rack, "theirs", number, [["unshare", "--mount", "sh", "-c", f"{place} && {one}"] for one in commands]
    )
    (image,) = [path for path in out.iterdir() if path.suffix in {".qcow2", ".img"} or "root" in path.name]
    check(rack, "theirs", image)
    return {**costs, "stored": size_of(folder)}


def call(rack: Rack, vm: str, number: int, commands: Sequence[list[str]]) -> dict[str, Cost | int]:
    """Run a full backup, write into the disk, run an incremental one, restore."""
    full, incremental, restore = commands
    costs: dict[str, Cost | int] = {"full": measured(full, rack.folder, {})}
    draw = random.Random(number)
    for block in draw.sample(range(64, DISK // MiB - 1), BLOCKS):
        rack.poke(vm, "root", at=f"{block}M", length="1M", pattern=draw.randrange(1, 255))
    costs["incremental"] = measured(incremental, rack.folder, {})
    costs["restore"] = measured(restore, rack.folder, {})
    return costs


def check(rack: Rack, vm: str, image: Path) -> None:
    """Compare a restored image with the disk, and remove it."""
    (disk,) = rack.hypervisor.images(vm)
    subprocess.run(["qemu-img", "compare", "-U", "-q", str(disk.path), str(image)], check=True)
    shutil.rmtree(image.parent)


def forget_checkpoints(rack: Rack, vm: str) -> None:
    """Let the next backup be a full one."""
    for checkpoint in rack.domain(vm).listAllCheckpoints():
        checkpoint.delete()


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
