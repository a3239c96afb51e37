"""External tools, run with a time limit, whose failures say what to do."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from vmkeep.errors import SourceError, TemporaryError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

_PACKAGES: Final = {
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "fuse2fs": "fuse2fs",
    "fusermount3": "fuse3",
    "e2fsck": "e2fsprogs",
    "mke2fs": "e2fsprogs",
    "sfdisk": "fdisk",
    "mount": "mount",
    "umount": "mount",
}
# Debian keeps the tools of an administrator out of a user's PATH.
_ADMIN_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"


def find(tool: str) -> str:
    """Return the path of *tool*.

    Raises:
        UnsupportedError: it is not installed; names the Debian package that has it.
    """
    path = shutil.which(tool) or shutil.which(tool, path=_ADMIN_PATH)
    if path is None:
        package = _PACKAGES.get(tool, tool)
        raise UnsupportedError(f"{tool} is not installed: apt-get install {package} (Debian, Ubuntu)")
    return path


def installed(tool: str) -> bool:
    """Tell whether *tool* can be run."""
    return (shutil.which(tool) or shutil.which(tool, path=_ADMIN_PATH)) is not None


def run(
    tool: str,
    *arguments: str,
    timeout_s: float,
    accept: Container[int] = (0,),
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run *tool* and return its output as text.

    Args:
        accept: Exit codes that are no failure.

    Raises:
        UnsupportedError: the tool is not installed.
        TemporaryError: it did not end in time; it was killed.
        SourceError: it failed; carries its own last words.
    """
    command = [find(tool), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise TemporaryError(
            f"{' '.join([tool, *arguments])} did not end within {timeout_s:.0f} s"
        ) from error
    if done.returncode not in accept:
        words = last_words(done.stderr or done.stdout)
        raise SourceError(f"{' '.join([tool, *arguments])} failed ({done.returncode}): {words}")
    return done


def last_words(text: str, *, lines: int = 4) -> str:
    """Return the end of a tool's output in one line."""
    return (
        "; ".join(line.strip() for line in text.strip().splitlines()[-lines:] if line.strip()) or "no message"
    )
