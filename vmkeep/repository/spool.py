"""What one session keeps on the local disk, so that it survives its process.

session            who it is (sealed JSON)
lock               held by the process that uses the spool
packs/<pack>.new   being written; removed when found
packs/<pack>.pack  finished, not uploaded yet
packs/<pack>.list  the entries of a finished pack; stays when the pack was uploaded
components/<name>  a component that was saved completely (sealed JSON)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from vmkeep.errors import ConflictError, TemporaryError, VmkeepError
from vmkeep.repository.index import ENTRY, PACK_SIZE, PackInfo
from vmkeep.repository.pack import FinishedPack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CRC: Final = struct.Struct("<I")


class Spool:
    """A folder that belongs to one session at a time.

    Raises:
        ConflictError: another process or session uses it now.
        TemporaryError: the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._packs = folder / "packs"
        self._components = folder / "components"
        with spooling(folder):
            for each in (folder, self._packs, self._components):
                each.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = -1
            raise ConflictError(
                f"the spool {folder} is in use by another backup; wait until it ends"
            ) from None
        for leftover in self._packs.glob("*.new"):
            leftover.unlink()

    def new_pack(self) -> Path:
        """Return a name for a pack that is being written."""
        return self._packs / f"{os.urandom(8).hex()}.new"

    def pack(self, name: bytes) -> Path:
        """Return the path of a finished pack."""
        return self._packs / f"{name.hex()}.pack"

    def keep_pack(self, written: Path, pack: FinishedPack) -> None:
        """Keep a finished pack; on return it survives a crash."""
        written.replace(self.pack(pack.info.name))
        self._write(
            self._packs / f"{pack.info.name.hex()}.list",
            pack.info.encode() + _CRC.pack(pack.info.crc or 0) + pack.entries.tobytes(),
        )

    def packs(self) -> Iterator[FinishedPack]:
        """Yield every pack of the session; what is in a pack without list was lost with the process."""
        for path in sorted(self._packs.glob("*.list")):
            data = path.read_bytes()
            (info,) = PackInfo.table(data[:PACK_SIZE])
            (crc,) = _CRC.unpack_from(data, PACK_SIZE)
            entries = np.frombuffer(data, ENTRY, offset=PACK_SIZE + _CRC.size)
            yield FinishedPack(replace(info, crc=crc), entries)
        for path in self._packs.glob("*.pack"):
            if not path.with_suffix(".list").exists():
                path.unlink()

    def write_session(self, data: bytes) -> None:
        """Keep who the session is; on return it survives a crash."""
        self._write(self.folder / "session", data)

    def session(self) -> bytes | None:
        """Return who the session is, if the spool holds one."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "session").read_bytes()
        return None

    def write_component(self, name: str, data: bytes) -> None:
        """Keep a saved component; on return it survives a crash."""
        self._write(self._components / name, data)

    def components(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the record of every component that was saved."""
        for path in sorted(self._components.iterdir()):
            if not path.name.endswith(".new"):
                yield path.name, path.read_bytes()

    def clear(self) -> None:
        """Forget the session and all of its data; the spool stays ours.

        Raises:
            TemporaryError: the disk is full.
        """
        # First what makes it a session: a crash in the middle must not leave one with half its packs.
        with spooling(self.folder / "session"):
            (self.folder / "session").unlink(missing_ok=True)
            _sync_folder(self.folder)
            for each in (self._components, self._packs):
                shutil.rmtree(each)
                each.mkdir(mode=0o700)

    def remove(self) -> None:
        """Remove the folder, for its session is decided; what cannot be removed, the next session drops."""
        with contextlib.suppress(VmkeepError):
            self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let another process use the spool; a second call does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _write(self, path: Path, data: bytes) -> None:
        new = path.with_name(f"{path.name}.new")
        with spooling(path), new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            new.replace(path)
            _sync_folder(path.parent)


@contextlib.contextmanager
def spooling(path: Path) -> Iterator[None]:
    """Say which disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.strerror is not None:
            what = f"cannot write to the spool {path.parent}: {error.strerror}"
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise TemporaryError(f"{what}; free some space there, or use another spool") from error
            raise VmkeepError(what) from error
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
