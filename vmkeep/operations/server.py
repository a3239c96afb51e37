"""The server of one instantly restored VM, as a process: `python -m vmkeep.operations.server FOLDER`.

It ends by itself when the VM has all of its data, or is gone, whoever started it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.disks.nbd_server import serving as nbd_serving
from vmkeep.errors import VmkeepError
from vmkeep.fleet import lookup
from vmkeep.operations import repositories, served_point, serving
from vmkeep.operations.mount import whole_disks
from vmkeep.operations.taken import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.disks.nbd_server import NbdServer
    from vmkeep.operations.serving import Serving
    from vmkeep.repository import Repository

_RENEW_S: Final = 24 * 3600.0
"""How often it says that it still reads: who does not is taken for dead after 7 days."""
_PATIENCE_S: Final = 24 * 3600.0
"""How long a store may be away before the VM is told: it waits as for a slow disk, an error would stop it."""
_LOOK_S: Final = 5.0
"""How often it looks whether it is needed."""

_TRIES: Final = 25
_PAUSE_S: Final = 0.02

_log = logging.getLogger("vmkeep.server")


def main(folder: Path) -> int:
    """Serve what is noted in *folder* until the VM needs it no more, or a signal comes."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    secrets = json.loads(sys.stdin.buffer.read() or b"{}")
    lookup.resolvers.update({kind: known.__getitem__ for kind, known in secrets.items()})
    wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    with contextlib.ExitStack() as stack:
        # Who looks whether we are alive holds it for a moment.
        if not any(stack.enter_context(_lock(folder)) for _ in range(_TRIES)):
            return 0  # another one serves it
        write_whole(folder / "pid", str(os.getpid()).encode())
        try:
            _serve(serving.read(folder), wanted)
        except VmkeepError as error:
            _log.error("%s", error)
            return error.exit_code
    return 0


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Take the lock of those who serve; tell whether it is ours."""
    with serving.turn(folder, "lock") as ours:
        if not ours:
            time.sleep(_PAUSE_S)
        yield ours


def _serve(what: Serving, wanted: set[signal.Signals]) -> None:
    address = what.streams().folder(what.target) / serving.SOCKET
    with contextlib.ExitStack() as stack:
        repository = stack.enter_context(repositories.open_repository(what.file))
        point = served_point.keep(repository, what)
        disks = {
            what.export(name): stack.enter_context(repository.open_disk(ref, patience_s=_PATIENCE_S))
            for name, ref in whole_disks(point).items()
            if name in what.disks
        }
        # Only QEMU can enter the folder that the socket lies in.
        # Nobody lets data stream into a VM that is about to be started anew.
        with serving.my_turn(what.folder):
            server = stack.enter_context(nbd_serving(disks, address, mode=0o666))
            _log.info(
                "serving %s of %s to VM %s at %s", ", ".join(disks), point.session, what.target, address
            )
            _recover(what)
        heard = _until_done(what, server, repository, wanted)
    if heard:
        _log.info("ended by %s; %s still needs it", heard.name, what.target)
        return
    _log.info("%s needs it no more", what.target)
    with repositories.open_repository(what.file) as repository:
        served_point.let_go(repository, what.folder)
    serving.forget(what.folder)


def _recover(what: Serving) -> None:
    """Let the VM go on, if another server left it alone."""
    try:
        done = what.streams().recover(what.target)
    except VmkeepError as error:
        _log.error("%s", error)
    else:
        if done:
            _log.warning("VM %s had no server for a while: %s", what.target, done)


def _until_done(
    what: Serving, server: NbdServer, repository: Repository, wanted: set[signal.Signals]
) -> signal.Signals | None:
    """Wait; return the signal that came, or `None` when the server is not needed any more."""
    begun = renewed = time.monotonic()
    doubts = _Doubts(what.target)
    while True:
        heard = signal.sigtimedwait(wanted, _LOOK_S)
        if heard is not None:
            return signal.Signals(heard.si_signo)
        if time.monotonic() - renewed > _RENEW_S:
            renewed = time.monotonic()
            with contextlib.suppress(VmkeepError):  # in a day again; there are several
                served_point.keep(repository, what)
        if not _needed(what, server, doubts, waited=time.monotonic() - begun):
            return None


class _Doubts:
    """Why it cannot be told whether a VM needs its server: logged when it changes, not at every look."""

    def __init__(self, vm: str) -> None:
        self._vm, self._last = vm, ""

    def now(self, reason: str) -> None:
        """Take note of the reason at this moment; empty: there is none."""
        if reason and reason != self._last:
            _log.warning("VM %s: %s", self._vm, reason)
        elif self._last and not reason:
            _log.info("VM %s: all is well again", self._vm)
        self._last = reason


def _needed(what: Serving, server: NbdServer, doubts: _Doubts, *, waited: float) -> bool:
    """Tell whether the VM needs the server, or may; let its data stream in if nobody else does."""
    try:
        needed = _asked(what, server, waited)
    except VmkeepError as error:
        if not serving.is_noted(what.folder):
            return False
        doubts.now(str(error))
        return True
    if needed is None:  # whoever lets its data stream in will see
        return True
    doubts.now("")
    return needed


def _asked(what: Serving, server: NbdServer, waited: float) -> bool | None:
    """Tell the same; `None`: it is another's turn to find out."""
    noted = serving.read(what.folder)
    if not noted.in_place and (waited < serving.ABANDONED_S or server.connections):
        return True
    streams = what.streams()
    with serving.turn(what.folder) as ours:
        if not ours:
            return None
        behind = streams.behind(what.target)
        if what.machine().exists(what.target) and (noted.wanted or not behind):
            behind = streams.stream(what.target, bandwidth=noted.bandwidth)
        return bool(behind)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
