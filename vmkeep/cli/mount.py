"""`vmkeep mount`: serves the disks of a recovery point until it is interrupted."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from vmkeep.cli.console import err, local_time, out, print_json
from vmkeep.errors import InputError
from vmkeep.operations.mount import Where, mounted

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.fleet import FleetFile
    from vmkeep.operations.mount import Mount


def mount(  # noqa: PLR0913  (each is an option)
    file: FleetFile,
    target: str,
    session: str,
    *,
    socket: Path | None,
    listen: str | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Serve until a signal comes.

    Raises:
        InputError: what was typed cannot be carried out.
        KeyboardInterrupt: never: the signal is how it ends.
    """
    if socket is not None and listen is not None:
        raise InputError("say either --socket or --listen")
    address = socket if listen is None else _address(listen)
    # From here on signals wait until we look: one that comes while we set up still takes all down again.
    wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        with mounted(file, target, session, Where(address, folder)) as found:
            _tell(found, as_json=as_json)
            signal.sigwait(wanted)
            err().print("let go", markup=False)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)


def _tell(found: Mount, *, as_json: bool) -> None:
    point = found.point
    if as_json:
        print_json(
            {"vm": point.vm, "session": point.session, "uris": dict(found.uris),
             "files": {name: str(path) for name, path in found.files.items()}}
        )  # fmt: skip
        return
    out().print(
        f"{point.vm} as it was at {local_time(point.taken)}, read-only, until this is interrupted:",
        markup=False,
    )
    for name, uri in found.uris.items():
        out().print(f"  {name}: {uri}", markup=False)
    for path in found.files.values():
        out().print(f"  {path}", markup=False)
    first = next(iter(found.uris.values()))
    out().print(f"for example: qemu-img convert -O qcow2 '{first}' found.qcow2", markup=False)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"--listen {text!r}: write HOST:PORT, for example 127.0.0.1:10809")
    return host.strip("[]") or "127.0.0.1", int(port)
