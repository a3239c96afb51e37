"""Run a command, and take note at once of the end of all that it leaves behind, until nothing of it is left.

    python reaper.py COMMAND [ARGUMENT]...

libvirt waits for the end of each VM, whose QEMU is a child of process 1 by then. In many containers that one
looks around every few seconds only: so long the ended QEMU stays a zombie, and libvirt waits. This imports
nothing of vmkeep, for it is to start at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36
"""See: prctl(2). Orphans below this process become its children."""


def main() -> int:
    """Return the exit code of the command; a request to end is passed on to it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    command = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(command, signal.SIGTERM))
    code = 0
    while True:
        try:
            ended, status = os.wait()
        except ChildProcessError:
            return code
        if ended == command:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            code = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
