"""Temporary files of a test run in a folder of its own, and the proof that the run leaves nothing behind.

All that tests start inherits the folder's name as TMPDIR, daemons included: so they are found, and two runs
on one machine never clear away each other's scratch folders.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.disks import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENDS_S: Final = 120.0
"""Servers that were told to end, and ones that notice that nobody needs them any more, get so long."""
_OUR_OWN: Final = b"multiprocessing.resource_tracker"
"""Python's own helper of a process, which ends with it."""


@contextlib.contextmanager
def clean_machine() -> Iterator[Path]:
    """Let TMPDIR be a new folder, which is removed at the end with what processes of it are left.

    Its path is short, for sockets lie in it; others may pass through it, as PostgreSQL's user must.

    Raises:
        AssertionError: files or processes were left; not when the block itself fails.
    """
    folder = Path(tempfile.mkdtemp(prefix="vmk-"))
    folder.chmod(0o711)
    before, os.environ["TMPDIR"] = os.environ.get("TMPDIR"), str(folder)
    tempfile.tempdir = None  # Python looks at the environment only once
    try:
        yield folder
        left = _left(folder)
    finally:
        for process in _processes(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        for point in scratch.mounts_below(folder):
            scratch.unmount(point, lazy=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
        tempfile.tempdir = None
    assert not left, "the tests have left:\n" + "\n".join(left)


def _left(folder: Path) -> list[str]:
    """Return what is left, one on a line, when all had time to end and the dead were cleared away."""
    deadline = time.monotonic() + _ENDS_S
    while _processes(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    scratch.reap()  # what killed processes left, as the next vmkeep on the machine does
    lines = [f"process {one.name}: {_read(one / 'cmdline').decode()}" for one in _processes(folder)]
    return [*lines, *(str(path) for path in sorted(folder.iterdir()))]


def _processes(folder: Path) -> list[Path]:
    """Return those who were told of the folder by their environment or command line, below /proc."""
    told, name = b"TMPDIR=%b\0" % os.fsencode(folder), os.fsencode(f"{folder}/")
    return [
        process
        for process in Path("/proc").glob("[0-9]*")
        if told in _read(process / "environ") or name in _read(process / "cmdline")
        if _OUR_OWN not in _read(process / "cmdline")
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return b""
