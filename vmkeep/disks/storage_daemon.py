"""qemu-storage-daemon for a while: images of any format as NBD or FUSE exports."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from vmkeep.disks import qemu_img, scratch, tools
from vmkeep.errors import SourceError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_START_S: Final = 60.0
_POLL_S: Final = 0.005


def image_node(
    name: str,
    path: Path,
    format: str,  # noqa: A002  (the word of the fleet file)
    *,
    writable: bool,
    direct: bool = False,
) -> dict[str, Any]:
    """Describe an image as a block node called *name*; its file's locks are taken by the daemon.

    Args:
        direct: past the page cache; the file system must know that.
    """
    cache = {"cache": {"direct": True}} if direct else {}
    return {
        "driver": format,
        "node-name": name,
        "read-only": not writable,
        "discard": "unmap",
        **cache,
        "file": {
            **cache,
            "driver": "host_device" if path.is_block_device() else "file",
            "filename": str(path.resolve()),
            "read-only": not writable,
            "discard": "unmap",
        },
    }


@contextlib.contextmanager
def running(  # noqa: PLR0913  (each is a keyword, and none belongs to another)
    folder: Path,
    *,
    nodes: Sequence[Mapping[str, Any]],
    exports: Sequence[Mapping[str, Any]],
    ready: Callable[[], bool],
    what: str,
    nbd_socket: Path | None = None,
) -> Iterator[None]:
    """Run the daemon for the length of a `with` block.

    Args:
        folder: A scratch folder; its log and process id lie there, and `scratch.reap` finds it by that.
        ready: Tells whether what the caller waits for is there.
        what: How errors call it.

    Raises:
        SourceChangedError: an image is in use by a virtual machine.
        SourceError: an image cannot be opened.
        TemporaryError: the daemon does not get ready.
    """
    command = [tools.find("qemu-storage-daemon"), "--pidfile", str(folder / "daemon.pid")]
    for node in nodes:
        command += ["--blockdev", json.dumps(node)]
    if nbd_socket is not None:
        # QEMU's default is 100 connections; the limit is ours.
        command += ["--nbd-server", f"addr.type=unix,addr.path={nbd_socket},max-connections=0"]
    for export in exports:
        command += ["--export", json.dumps(export)]
    log = folder / "daemon.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,  # Ctrl-C is for us: a step that is under way still needs it
        )  # fmt: skip
    try:
        _wait(process, ready, log, what)
        yield
    finally:
        scratch.end(process, timeout_s=_START_S)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, what: str) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        if process.poll() is not None:
            words = tools.last_words(log.read_text(errors="replace"))
            raise qemu_img.translated(SourceError(words), what)
        if time.monotonic() > deadline:
            raise TemporaryError(f"{what}: qemu-storage-daemon was not ready within {_START_S:.0f} s")
        time.sleep(_POLL_S)
