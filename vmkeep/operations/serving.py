"""The servers of instantly restored VMs: one process each, that outlives whoever started it.

<state>/<fleet>/serving/<hypervisor>/<vm>/
    serving.json   what is served, to whom, and from where
    lock           held by the server as long as it lives
    turn           held by whoever lets the data stream in: the run, `vmkeep stream`, or else the server
    pid, log       of the server
    pin, point     the recovery point, kept from being collected (see `served_point`)
    replaced/      another restore in whose place this one is being put (see `replaced`)

The folder is there for as long as the VM needs a server, whether one runs or not: whoever finds it can start
one again. Nothing in it, and nothing of the server's command line, is a secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vmkeep import fleet as fleets
from vmkeep.errors import (
    InputError,
    NotFoundError,
    SourceError,
    TemporaryError,
    UnsupportedError,
    VmkeepError,
)
from vmkeep.fleet import lookup
from vmkeep.hypervisors.open import open_hypervisor
from vmkeep.operations import repositories, served_point
from vmkeep.operations.state import state_folder
from vmkeep.operations.taken import write_whole
from vmkeep.units import KiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmkeep.fleet import FleetFile
    from vmkeep.hypervisors.base import Hypervisor, Streams

SOCKET: Final = "nbd"
NOTE: Final = "serving.json"
_MODULE: Final = "vmkeep.operations.server"
ABANDONED_S: Final = 3600.0
"""How long a server waits for its VM to be put on the disks."""
_STARTS_S: Final = 120.0
"""How long a server may take until it answers: it opens the repository, which may be far."""
_ENDS_S: Final = 30.0
_POLL_S: Final = 0.02
_FULL_S: Final = 1.0
"""How long all connections of a server may be taken before whoever needs one is told."""
_LAST_WORDS: Final = 64 * KiB
"""How much of the end of a log is looked through for its last line."""
_PEER: Final = struct.Struct("3i")
"""Process, user, group."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What one server serves."""

    fleet: str
    """The path of the fleet file."""
    hypervisor: str
    target: str
    """The VM, as the hypervisor knows it."""
    vm: str
    """As the fleet file calls it."""
    session: str
    """The recovery point."""
    repository: str | None
    """The copy that it is read from."""
    run: str
    disks: tuple[str, ...]
    in_place: bool = False
    """Whether the VM lies on the overlays: from then on it needs the server until it has all data."""
    wanted: bool = False
    """Whether its data is to stream in; until then it runs from the server."""
    bandwidth: int = 0
    """Of each disk, in bytes a second; 0: as fast as it goes."""
    by_point: bool = False
    """Whether the exports are called after the recovery point, too; those of older versions are not."""
    kept_in: str = field(default="", compare=False)
    """The folder that it was read from: it stays the same when the fleet is given another name."""
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    @property
    def file(self) -> FleetFile:
        """The fleet file, as it is now."""
        return fleets.load(Path(self.fleet)).at(self.repository)

    def export(self, disk: str) -> str:
        """Return what a disk is called at the server.

        An overlay names it in its header: over the disk of another recovery point it would be no disk at all,
        so that must not be found there.
        """
        return f"{disk}.{self.session}" if self.by_point else disk

    @property
    def folder(self) -> Path:
        """Where all of this is kept."""
        if self.kept_in:
            return Path(self.kept_in)
        return _all_in(self.file.fleet.fleet) / self.hypervisor / self.target

    def machine(self) -> Hypervisor:
        """Return the driver of the hypervisor that runs the VM.

        Raises:
            InputError: the fleet file does not declare the hypervisor any more.
        """
        file = self.file
        config = file.fleet.hypervisors.get(self.hypervisor)
        if config is None:
            raise InputError(
                f"{file.path}: there is no hypervisor {self.hypervisor} any more, on which VM {self.target} "
                "still runs from its recovery point: declare it until 'vmkeep stream' has seen it through"
            )
        return open_hypervisor(self.hypervisor, config, file.path.absolute().parent)

    def streams(self) -> Streams:
        """Return how its data streams in.

        Raises:
            SourceError: the hypervisor is of another driver now.
        """
        found = self.machine().streams
        if found is None:
            raise SourceError(f"hypervisor {self.hypervisor} does not run VMs while their data streams in")
        return found


_NOTES: Final = TypeAdapter(Serving)


def folder_of(file: FleetFile, hypervisor: str, target: str) -> Path:
    """Return the folder of the server of a VM that is restored as *target*."""
    for folder in folders_of(file):
        if (folder.parent.name, folder.name) == (hypervisor, target):
            return folder
    return _all_in(file.fleet.fleet) / hypervisor / target


def folders_of(file: FleetFile) -> Iterator[Path]:
    """Yield the folders from which VMs of a fleet are served, also those of when it had another name."""
    own = _all_in(file.fleet.fleet)
    # What begins with a dot is being removed.
    for path in sorted(own.glob(f"*/[!.]*/{NOTE}")):
        yield path.parent
    for path in sorted(own.parent.parent.glob(f"*/{own.name}/*/[!.]*/{NOTE}")):
        if not path.is_relative_to(own) and _names(path, file.path):
            yield path.parent


def _all_in(fleet: str) -> Path:
    return state_folder(fleet) / "serving"


def _names(note: Path, file: Path) -> bool:
    """Tell whether a note, which may be of any version, is of this fleet file."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        return Path(json.loads(note.read_bytes())["fleet"]).samefile(file)
    return False


def all_of(file: FleetFile, *, unreadable: Callable[[VmkeepError], None] | None = None) -> Iterator[Serving]:
    """Yield what VMs of a fleet are served, or were when their server was killed.

    Args:
        unreadable: told of each note that is not understood, which is passed over; by default it is an error.
    """
    for folder in folders_of(file):
        try:
            yield read(folder)
        except NotFoundError:
            continue
        except UnsupportedError as error:
            if unreadable is None:
                raise
            unreadable(error)


def read(folder: Path) -> Serving:
    """Return what is served from a folder.

    Raises:
        NotFoundError: nothing.
        UnsupportedError: its note is of another version of vmkeep.
    """
    try:
        body = (folder / NOTE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _nothing(folder) from None
    try:
        noted = _NOTES.validate_json(body)
    except ValidationError as error:
        problem = error.errors()[0]
        what = ": ".join([*map(str, problem["loc"]), problem["msg"]])
        raise UnsupportedError(
            f"{folder / NOTE} is not understood ({what}): a newer or older vmkeep wrote it. The server of "
            f"VM {folder.name} goes on if it runs; use that vmkeep until the VM has all of its data"
        ) from error
    return replace(noted, kept_in=str(folder))


def is_noted(folder: Path) -> bool:
    """Tell whether a VM is served from a folder, or was when its server was killed."""
    return (folder / NOTE).exists()


def is_begun(serving: Serving) -> bool:
    """Tell whether a run is about to put the VM on its disks, as far as one can tell from outside."""
    with contextlib.suppress(OSError):
        age = time.time() - (serving.folder / NOTE).stat().st_mtime
        return not serving.in_place and age < ABANDONED_S
    return False


def write(serving: Serving) -> None:
    """Note what is served."""
    serving.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(serving.folder / NOTE, json.dumps(asdict(serving)).encode())


def update(serving: Serving) -> None:
    """Note anew what is served.

    Raises:
        NotFoundError: nothing is served any more: the VM has all of its data.
    """
    new = serving.folder / f".{NOTE}.{os.getpid()}"
    with _going_on(serving):
        with new.open("wb") as file:
            file.write(json.dumps(asdict(serving)).encode())
            file.flush()
            os.fsync(file.fileno())
        new.replace(serving.folder / NOTE)


def ensure(serving: Serving, *, room: bool = True) -> Path:
    """Return the socket of a server that answers; it is started if none does.

    Args:
        room: whether another client has to find a place; otherwise it is enough that the server runs.

    Raises:
        NotFoundError: nothing is served any more: a server that was there has seen the VM through.
        TemporaryError: it does not come up, and the message has its last words; or it has no room.
    """
    address = serving.streams().folder(serving.target) / SOCKET
    if is_alive(serving.folder) and _is_ready(serving, address, room=room):
        return address
    process = _started(serving)
    deadline = time.monotonic() + _STARTS_S
    while not _is_ready(serving, address, room=room):
        ended = process.poll()
        if not is_noted(serving.folder):
            raise _nothing(serving.folder)
        if ended == 0 and not is_alive(serving.folder):
            process = _started(serving)  # it left the work to another one, which has ended meanwhile
        elif ended or time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            raise TemporaryError(
                f"VM {serving.target}: the server of its recovery point does not come up: "
                f"{last_words(serving.folder)}"
            )
        time.sleep(_POLL_S)
    return address


def _started(serving: Serving) -> subprocess.Popen[bytes]:
    """Start a server; one that finds another at work ends at once."""
    # In memory only: neither a disk nor the command line shows it.
    with (
        _going_on(serving),
        (serving.folder / "log").open("ab") as log,
        os.fdopen(os.memfd_create("secrets"), "w+b") as given,
    ):
        given.write(json.dumps(_looked_up(serving.file)).encode())
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(serving.folder)],
            stdin=given,
            stdout=log,
            stderr=log,
            start_new_session=True,  # no signal for us reaches it
            cwd="/",
        )
    # Somebody has to take note of its end, or it stays a zombie; it may well outlive us.
    threading.Thread(target=process.wait, name=f"server-{process.pid}", daemon=True).start()
    return process


@contextlib.contextmanager
def _going_on(serving: Serving) -> Iterator[None]:
    """Say what it means that the folder has gone."""
    try:
        yield
    except FileNotFoundError:
        if is_noted(serving.folder):
            raise
        raise _nothing(serving.folder) from None


def _nothing(folder: Path) -> NotFoundError:
    return NotFoundError(f"no VM is served from {folder}")


def end(folder: Path) -> None:
    """End the server of a folder, if it runs; what it served stays noted.

    Raises:
        TemporaryError: it does not end.
    """
    deadline = time.monotonic() + _ENDS_S
    how = signal.SIGTERM
    while is_alive(folder):
        _signal(folder, how)
        time.sleep(_POLL_S)
        if time.monotonic() > deadline:
            if how is signal.SIGKILL:
                raise TemporaryError(f"the server of {folder} does not end")
            how, deadline = signal.SIGKILL, deadline + _ENDS_S


def _signal(folder: Path, how: signal.Signals) -> None:
    """Send a signal to the server of a folder, and to no process that has its number by now."""
    number = _noted_pid(folder)
    with contextlib.suppress(OSError, ValueError, IndexError):
        process = os.pidfd_open(number)
        try:
            words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
            if _MODULE.encode() in words and Path(os.fsdecode(words[-2])).samefile(folder):
                signal.pidfd_send_signal(process, how)
        finally:
            os.close(process)


def let_go(serving: Serving) -> None:
    """End the server, let its recovery point be collected, and forget that anything was served."""
    end(serving.folder)
    with contextlib.suppress(VmkeepError), repositories.open_repository(serving.file) as repository:
        served_point.let_go(repository, serving.folder)
    forget(serving.folder)


def dismiss(folder: Path) -> None:
    """Let a server go whose VM is gone for good, with all that is its; a second call does nothing.

    When it fails, all is noted as before, and the next call does the rest.

    Raises:
        SourceError: the VM is there, and needs its server.
    """
    try:
        serving = read(folder)
    except NotFoundError:
        return
    streams = serving.streams()
    if streams.behind(serving.target):
        raise SourceError(
            f"VM {serving.target} is there, and needs the server of its recovery point: nothing was let go"
        )
    end(folder)
    shutil.rmtree(streams.folder(serving.target), ignore_errors=True)
    let_go(serving)


def forget(folder: Path) -> None:
    """Remove a folder in one step, whoever looks meanwhile."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def clear(file: FleetFile) -> None:
    """Remove what was killed while it removed a folder."""
    for gone in _all_in(file.fleet.fleet).glob("*/.*"):
        shutil.rmtree(gone, ignore_errors=True)


def is_alive(folder: Path) -> bool:
    """Tell whether a server runs there."""
    if not (folder / "lock").exists():
        return False
    with turn(folder, "lock") as free:
        return not free


@contextlib.contextmanager
def turn(folder: Path, name: str = "turn") -> Iterator[bool]:
    """Take a lock of a folder if it is free; tell whether it is ours for the length of a `with` block."""
    try:
        lock = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:  # all was let go
        yield False
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held = False
    else:
        held = True
    try:
        yield held
    finally:
        os.close(lock)


@contextlib.contextmanager
def my_turn(folder: Path) -> Iterator[None]:
    """Wait for one's turn, and have it for the length of a `with` block.

    Raises:
        NotFoundError: nothing is served from this folder any more.
    """
    while read(folder):
        with turn(folder) as ours:
            if ours:
                yield
                return
        time.sleep(_POLL_S)


def last_words(folder: Path) -> str:
    """Return the end of a server's log."""
    lines = []
    with contextlib.suppress(OSError), (folder / "log").open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_WORDS))
        lines = log.read(_LAST_WORDS).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


class _Answer(Enum):
    """Who is at a socket."""

    NOBODY = 1
    STRANGER = 2
    """Another process than the server of our folder: what it serves is not what is noted."""
    FULL = 3
    """Our server, which closes one connection more at once."""
    READY = 4


def _is_ready(serving: Serving, address: Path, *, room: bool) -> bool:
    """Tell whether the server of a folder answers.

    Raises:
        TemporaryError: it does, and has no room for another client.
    """
    deadline = time.monotonic() + _FULL_S
    # One that is just ending closes connections, too.
    while (answer := _ask(address, serving.folder)) is _Answer.FULL and is_alive(serving.folder):
        if not room:
            return True
        if time.monotonic() > deadline:
            raise TemporaryError(
                f"VM {serving.target}: the server of its recovery point runs, and all of its connections are "
                f"taken: end what else reads from {address}, and try again"
            )
        time.sleep(_POLL_S)
    return answer is _Answer.READY


def _ask(address: Path, folder: Path) -> _Answer:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(_STARTS_S)
        try:
            asking.connect(str(address))
            # See: unix(7), SO_PEERCRED: who listened there; 0 where its process cannot be seen from here.
            peer, _, _ = _PEER.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if peer not in {0, _noted_pid(folder)}:
                return _Answer.STRANGER
            return _Answer.READY if asking.recv(1) else _Answer.FULL
        except OSError:
            return _Answer.NOBODY


def _noted_pid(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int((folder / "pid").read_text())
    return -1


def _looked_up(file: FleetFile) -> dict[str, dict[str, str]]:
    """Return the secrets that a server cannot look up, by their kind and name: it knows no Prefect."""
    config = file.fleet.repository
    given: dict[str, dict[str, str]] = {}
    for reference in (config.key, config.s3.credentials if config.s3 else None):
        if reference is not None and not reference.model_fields_set & {"file", "env"}:
            (kind,) = reference.model_fields_set
            name = str(getattr(reference, kind))
            given.setdefault(kind, {})[name] = lookup.text_of(reference, file.path.absolute().parent)
    return given
