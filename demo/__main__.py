"""The demo's story, in its order; see ./run demo --help."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from rich.text import Text

from demo import machines, proof, running
from demo.guests import Guest
from demo.terminal import DemoError, Terminal
from vmkeep.disks import scratch
from vmkeep.errors import SourceError, VmkeepError
from vmkeep.units import KiB, MiB, format_duration, format_size

if TYPE_CHECKING:
    from types import FrameType

_MARK: Final = ".vmkeep-demo"
"""A folder with this file was made by the demo, and may be removed by it."""
_FLEET: Final = Path(__file__).with_name("fleet.yaml")
_INCREMENTAL: Final = 0.15
"""The second backup stores less than this share of the first."""


class Demo:
    """A fleet in a folder, from nothing to proved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = folder / "fleet.yaml"
        self.terminal = Terminal(
            folder,
            # Neither Prefect's database of this user, nor running state, is touched.
            {"VMKEEP_STATE": str(folder / "state"), "PREFECT_HOME": str(folder / "prefect")},
        )
        self.runs: list[str] = []
        self.stored: list[int] = []
        self.old_disks: dict[str, str] = {}
        self.old_orders = machines.ORDERS

    def play(self) -> None:
        """Do all of it.

        Raises:
            DemoError: something is not as promised.
        """
        act = self.terminal.act
        act("A fleet file", self.declare)
        act("Machines", self.install)
        act("A backup", self.back_up_first)
        act("A day later, an incremental", self.back_up_again)
        act("Disaster", self.destroy)
        act("Restore, in the order of dependencies", self.restore)
        act("Proof", self.prove)
        act("Parts, copies, and older points", self.restore_parts)
        act("Machines that run", self.run_machines)

    def declare(self) -> None:
        """Check and draw the fleet file, make the key and the encrypted repository."""
        shutil.copy(_FLEET, self.fleet)
        self.terminal.vmkeep("validate")
        self.terminal.vmkeep("graph", "--output", "fleet.svg")
        self.terminal.vmkeep("init")
        self.terminal.result(
            "an encrypted repository in backups/, its key in demo.key, a picture in fleet.svg"
        )

    def install(self) -> None:
        """Create the machines, and put real systems on their disks."""
        self.terminal.vmkeep("configure", "--direct")
        self.terminal.say(
            "Putting Debian's files, PostgreSQL, SQLite, an application and a web site on the disks ..."
        )
        size = machines.build(self.fleet, self.folder / "work")
        self.terminal.result(
            f"3 VMs with 4 disks (qcow2, vmdk, raw; GPT, ext4), {format_size(size)} of real files, "
            f"{machines.ORDERS:,} rows in PostgreSQL, {machines.ITEMS:,} in SQLite"
        )

    def back_up_first(self) -> None:
        """Save everything, through the generated Prefect flow."""
        self.terminal.vmkeep("plan", "backup")
        self.terminal.say(
            "Each backup is a Prefect flow made of this fleet; its server starts inside, some seconds"
        )
        self._backup()
        self.old_disks = proof.disks_of(Guest(self.fleet, "app1"))

    def back_up_again(self) -> None:
        """Change some of it, and save what is new."""
        self.terminal.say(
            f"{machines.NEW_ORDERS} orders come in through a real server; stock, pages, settings change ..."
        )
        machines.work_a_day(self.fleet)
        self._backup()
        first, second = self.stored
        if not 0 < second < first * _INCREMENTAL:
            raise DemoError(f"the second backup stored {format_size(second)}, the first {format_size(first)}")
        self.terminal.result(
            f"the second backup stored {second / first:.1%} of the first, and is a full one all the same"
        )
        self.terminal.vmkeep("points")
        self.terminal.vmkeep("verify", "--direct")

    def destroy(self) -> None:
        """Lose one machine, and damage another."""
        self.terminal.say("Taking SHA-256 of every disk, and noting every file and row, to compare ...")
        self.before = proof.look(self.fleet)
        self.terminal.say("rm -rf machines/db1; random bytes over the disk of app1")
        shutil.rmtree(self.folder / "machines/db1")
        noise = random.Random(3)  # noqa: S311  (damage)
        with (self.folder / "machines/app1/root.vmdk").open("r+b") as image:
            for offset in range(MiB, image.seek(0, os.SEEK_END), 8 * MiB):
                image.seek(offset)
                image.write(noise.randbytes(64 * KiB))
        with contextlib.suppress(SourceError):  # an image that cannot even be read is damaged, too
            if proof.disks_of(Guest(self.fleet, "app1")) == {"app1/root": self.before.disks["app1/root"]}:
                raise DemoError("the damage did no harm")
        self.terminal.result("db1 is gone, app1 is damaged")

    def restore(self) -> None:
        """Restore what web1 needs and web1, whole disks, each machine checked before the next."""
        self.terminal.say("web1 needs app1, which needs db1; whole disks, and with them all that is on them")
        report = self.terminal.vmkeep_json(
            "restore", "web1", "--with-dependencies", "--overwrite", file="restore.json"
        )
        self.terminal.result(
            f"db1, app1, web1 restored and healthy: {format_size(report['read'])} of disks "
            f"in {format_duration(report['elapsed'])}"
        )

    def prove(self) -> None:
        """Compare everything with what it was at the second backup."""
        found = proof.look(self.fleet)
        proof.compare(self.before, found)
        self.terminal.result(f"{len(found.disks)} disks have the same SHA-256, byte for byte")
        self.terminal.result(
            f"{len(found.files):,} files and folders are the same: content, owner, mode, time, attributes"
        )
        self.terminal.result(
            f"a real PostgreSQL server reads the same {found.orders.count:,} rows, "
            f"SQLite the same {found.stock.count:,}"
        )

    def restore_parts(self) -> None:
        """Restore one file; a machine as it was before, under another name; one database as it was before."""
        self._restore_file()
        self._restore_copy()
        self._restore_database()

    def run_machines(self) -> None:
        """Save guests while they run, lose one, and let it run again from its recovery point."""
        os.environ["VMKEEP_STATE"] = str(self.folder / "state")
        why = running.missing()
        with contextlib.ExitStack() as stack:
            if not why:
                try:
                    guests = stack.enter_context(running.running(self.terminal))
                except VmkeepError as error:
                    why = str(error)
                else:
                    guests.play()
        if why:
            self.terminal.result(f"SKIPPED, for no guest can run here: {why}; the rest was with disk images")

    def _restore_file(self) -> None:
        owners = () if os.geteuid() == 0 else ("--no-owners",)
        self.terminal.vmkeep(
            "restore", "web1/filesystems.site", "--to", "found", "--path", "/srv/www/index.html", *owners
        )
        found = [path.read_text() for path in (self.folder / "found").rglob("index.html")]
        if len(found) != 1 or "The shop" not in found[0]:
            raise DemoError(f"found/ has {len(found)} files index.html, or a wrong one")
        self.terminal.result("one file of web1 is in found/")

    def _restore_copy(self) -> None:
        first, _ = self.runs
        self.terminal.vmkeep("restore", "app1", "--run", first, "--as", "app1=app1-before", "--direct")
        found = proof.disks_of(Guest(self.fleet, "app1", name="app1-before"))
        if list(found.values()) != list(self.old_disks.values()):
            raise DemoError("app1-before is not what app1 was at the first backup")
        self.terminal.result("app1 as it was at the first backup is there as app1-before, byte for byte")

    def _restore_database(self) -> None:
        first, _ = self.runs
        self.terminal.vmkeep("restore", "db1/databases.orders", "--run", first, "--overwrite", "--direct")
        rows = proof.orders_of(Guest(self.fleet, "db1"))
        if rows.count != machines.ORDERS:
            raise DemoError(
                f"PostgreSQL has {rows.count} rows, and had {machines.ORDERS} at the first backup"
            )
        self.terminal.result(
            f"only db1's PostgreSQL went back to the first backup: a real server reads {rows.count:,} rows"
        )

    def _backup(self) -> None:
        report = self.terminal.vmkeep_json("backup", file=f"backup-{len(self.runs) + 1}.json")
        self.runs.append(report["run"])
        self.stored.append(report["stored"])
        self.terminal.result(
            f"backup complete: read {format_size(report['read'])}, stored {format_size(report['stored'])} "
            f"in {format_duration(report['elapsed'])}"
        )

    def finish(self, seconds: float) -> None:
        """Write the report, and say where everything is."""
        console = self.terminal.console
        report = self.folder / "report.md"
        report.write_text(self.terminal.report(), encoding="utf-8")
        console.print()
        console.print(self.terminal.summary())
        backups = sum(path.stat().st_size for path in (self.folder / "backups").rglob("*") if path.is_file())
        console.print(
            Text(
                f"\nAll of it in {format_duration(seconds)}; the repository has {format_size(backups)}.",
                "bold",
            )
        )
        console.print(
            Text(f"The report: {report}   The picture: {self.folder / 'fleet.svg'}"), soft_wrap=True
        )
        console.print(
            Text(
                f"Go on by yourself: cd {self.folder}; export VMKEEP_STATE=$PWD/state "
                f"PREFECT_HOME=$PWD/prefect; {Path(sys.executable).with_name('vmkeep')} show db1"
            ),
            soft_wrap=True,
        )


def main() -> int:
    """Play the demo, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="./run demo",
        description="Make a fleet of three machines with real disks, save it, change it, save it again, "
        "destroy some of it, restore it, and prove that it is the same.",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("demo-out"), help="where; made anew (default: demo-out)"
    )
    folder = parser.parse_args().folder.absolute()
    # A server that was started is stopped also when the demo is told to end.
    signal.signal(signal.SIGTERM, _end)
    begun = time.monotonic()
    try:
        _check_machine()
        _make_anew(folder)
        demo = Demo(folder)
        demo.play()
        demo.finish(time.monotonic() - begun)
    except (DemoError, VmkeepError, OSError, subprocess.SubprocessError) as error:
        print(f"demo: {error}", file=sys.stderr)  # noqa: T201  (also where the console is not set up)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _check_machine() -> None:
    """Refuse at once where files inside of disks cannot be opened.

    Raises:
        DemoError: FUSE is not there, or not for this user.
    """
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise DemoError(
            "/dev/fuse cannot be opened, which files inside of disks are reached through: "
            + ("modprobe fuse, or give it to this container (--device /dev/fuse --cap-add SYS_ADMIN)"
               if os.geteuid() == 0 or not Path("/dev/fuse").exists() else "run sudo ./run demo")
        )  # fmt: skip


def _make_anew(folder: Path) -> None:
    """Make an empty folder; remove what an earlier demo left, and nothing else.

    Raises:
        DemoError: there is something that no demo made.
    """
    scratch.reap()
    if folder.exists():
        if any(folder.iterdir()) and not (folder / _MARK).exists():
            raise DemoError(f"{folder} has something in it that the demo did not make: say another --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
