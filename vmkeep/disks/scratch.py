"""Private working folders, and the removal of what killed processes left in them.

A folder's name says who owns it: ``vmkeep-<pid>-<start of the process>-<random>``. Daemons write
their process id to ``*.pid`` inside it, and mounts lie below it. When the owner was killed, the next
vmkeep on the machine unmounts, ends and removes exactly that, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.disks import tools

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME: Final = re.compile(r"vmkeep-(\d+)-(\d+)-\w+")
_END_S: Final = 5.0


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a private folder (mode 0700); everything in it is ended and removed at the end.

    Args:
        parent: Where; by default the folder for temporary files. Keep it short: sockets lie in it.
    """
    where = parent or Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix=f"{owner()}-", dir=where))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def owner() -> str:
    """Return what the names of things that belong to this process begin with."""
    pid = os.getpid()
    return f"vmkeep-{pid}-{started(pid)}"


def is_orphan(name: str) -> bool:
    """Tell whether *name* begins with an `owner` that is no more; other names belong to someone else."""
    match = _NAME.match(name)
    return match is not None and not _owner_is_alive(match[1], match[2])


def reap(parent: Path | None = None) -> list[Path]:
    """Remove the folders of dead owners, with their mounts and daemons; return which."""
    where = parent or Path(tempfile.gettempdir())
    removed = []
    for folder in sorted(where.glob("vmkeep-*-*-*")):
        match = _NAME.fullmatch(folder.name)
        # Only our own: another user's folders are theirs to clean.
        if match is None or folder.lstat().st_uid != os.geteuid() or not folder.is_dir():
            continue
        if not _owner_is_alive(match[1], match[2]) and not _is_locked(folder):
            _remove(folder)
            removed.append(folder)
    return removed


def _owner_is_alive(pid: str, start: str) -> bool:
    """Tell whether the process still runs; its start time rules out a reused id."""
    return started(int(pid)) == int(start)


def _is_locked(folder: Path) -> bool:
    """Tell whether an owner holds the folder that we cannot see: in another container, with one /tmp."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def started(pid: int) -> int:
    """Return the start of a process in clock ticks since boot, or 0 when there is none.

    See: proc(5), /proc/pid/stat, field 22; the name in field 2 may hold anything, also blanks.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def mounts_below(folder: Path) -> list[Path]:
    """Return the mount points inside *folder*, the deepest first."""
    # mountinfo writes blanks and control characters as three octal digits.
    inside = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4])
        path = Path(os.fsdecode(point))
        if path.is_relative_to(folder):
            inside.append(path)
    return sorted(inside, key=lambda path: len(path.parts), reverse=True)


def unmount(point: Path, *, lazy: bool = False) -> None:
    """Unmount; a lazy one always succeeds and lets go once nothing uses it any more.

    Raises:
        SourceError: it is busy.
    """
    if os.geteuid() == 0:
        tools.run("umount", *(["-l"] if lazy else []), str(point), timeout_s=60)
    else:
        tools.run("fusermount3", "-u", *(["-z"] if lazy else []), str(point), timeout_s=60)


def end(process: subprocess.Popen[bytes], *, timeout_s: float = _END_S) -> int:
    """End a child: ask it, then kill it; return its exit code."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _remove(folder: Path) -> None:
    for point in mounts_below(folder):
        with contextlib.suppress(Exception):  # one that went away by itself between list and call
            unmount(point, lazy=True)
    for file in folder.glob("*.pid"):
        _end_orphan(file, folder)
    if mounts_below(folder):
        return  # removing would reach into a guest's files; the next reaping tries again
    shutil.rmtree(folder, ignore_errors=True)


def _end_orphan(file: Path, folder: Path) -> None:
    """End a daemon that *file* names, if it is the one that was started for *folder*."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(file.read_text())
        deadline = time.monotonic() + _END_S
        how = signal.SIGTERM
        # A dead process that nobody waited for has no command line any more.
        while os.fsencode(folder.name) in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, how)
            time.sleep(0.01)
            if time.monotonic() > deadline:
                how = signal.SIGKILL
