"""A fingerprint of image files that changes when their content may have changed."""

from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING, Final

from vmkeep.errors import SourceChangedError, SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# The kernel stamps files with a clock that ticks every 4 to 10 ms (network file systems: coarser).
# A write within the tick of an earlier one leaves no trace, so a fingerprint of a file that was
# written just now proves nothing: wait until the tick is certainly over, then take it.
_TICK_S: Final = 0.05
_ATTEMPTS: Final = 20
_DEVICE: Final = "device"


def fingerprint(files: Sequence[Path]) -> str:
    """Return the identity of the content of *files*: inode, size, and both times of change of each.

    Raises:
        SourceError: a file is missing or out of reach.
        SourceChangedError: the files are being written all the time.
    """
    for _ in range(_ATTEMPTS):
        taken, newest = _take(files)
        age = time.time() - newest
        # A time in the future is a clock that was set back or another machine's: waiting cannot help.
        if not 0 <= age < _TICK_S:
            return taken
        time.sleep(_TICK_S - age)
    raise SourceChangedError(f"{', '.join(map(str, files))}: written again and again; power the VM off first")


def proves_content(taken: str) -> bool:
    """Tell whether equal fingerprints mean equal content; writes to a block device leave no trace in it."""
    return bool(taken) and _DEVICE not in taken


def check(files: Sequence[Path], expected: str, *, what: str) -> None:
    """Compare the files with an earlier fingerprint.

    Raises:
        SourceChangedError: they are not what they were; names *what* changed.
    """
    if fingerprint(files) != expected:
        raise SourceChangedError(
            f"{what} changed since its snapshot: it was started or written meanwhile; "
            "what was read is not used, back it up again while it is powered off"
        )


def _take(files: Sequence[Path]) -> tuple[str, float]:
    parts = []
    newest = 0.0
    for file in files:
        try:
            found = file.stat()
        except OSError as error:
            raise SourceError(f"{file}: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            parts.append(f"{_DEVICE}:{found.st_rdev}")
            continue
        # Not the device number: it may differ after a reboot or a new mount of the same storage.
        parts.append(f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}")
        newest = max(newest, found.st_mtime, found.st_ctime)
    return ",".join(parts), newest
