"""Objects as files below a directory: a local disk or an NFS mount.

A file appears under its final name by a hard link, which fails when the name exists. So there is
never half an object and never two winners, on NFS too, where O_EXCL and rename promise less:

    write .tmp-<random> -> fsync -> link(.tmp-<random>, <key>) -> unlink .tmp-<random> -> fsync folder
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from vmkeep.errors import AccessError, InputError, NotFoundError, TemporaryError, VmkeepError
from vmkeep.stores.base import ObjectInfo
from vmkeep.stores.naming import check_key
from vmkeep.stores.pace import PacedFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.stores.pace import Pace

_TEMPORARY: Final = ".tmp-"
_STALE_AFTER: Final = 24 * 3600.0
"""Seconds after which a temporary file is a leftover of a killed writer: no single object takes so long."""
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_NO_LINKS: Final = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}
_FORBIDDEN: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


class DirectoryStore:
    """Keeps each object in a file of the same name; created when missing.

    Args:
        root: the directory.
        now: seconds since the epoch, to tell which temporary files are leftovers.
        pace: how fast objects are written, where they are not linked.

    Raises:
        AccessError: the directory cannot be created, read or written.
        InputError: there is something else of that name.
    """

    def __init__(self, root: Path, *, now: float | None = None, pace: Pace | None = None) -> None:
        self._root = root.absolute()
        self._pace = pace
        if self._root.exists() and not self._root.is_dir():
            raise InputError(f"{self._root} is not a directory: a directory store needs one")
        with self._translated("create", ""):
            self._root.mkdir(parents=True, exist_ok=True)
            self._sweep(time.time() if now is None else now)

    @property
    def url(self) -> str:
        """The path of the directory."""
        return str(self._root)

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        """See `Store`. A file on the same file system is linked, not copied: it must not change any more."""
        final = self._path(key)
        with self._translated("write", key):
            self._make_folder(final.parent)
            if isinstance(body, Path) and (done := _adopt(body, final)) is not None:
                return done
            temporary = self._root / f"{_TEMPORARY}{secrets.token_hex(8)}"
            try:
                _write_durably(temporary, body, self._pace)
                return _link(temporary, final)
            finally:
                temporary.unlink(missing_ok=True)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Store`."""
        with self._translated("read", key), self._path(key).open("rb", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            wanted = max(0, end - start) if length is None else min(length, max(0, end - start))
            data = os.pread(file.fileno(), wanted, start)
            while len(data) < wanted:  # one call returns 2 GiB at most
                more = os.pread(file.fileno(), wanted - len(data), start + len(data))
                if not more:
                    raise TemporaryError(f"{self._path(key)} became shorter while it was read")
                data += more
            return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store`."""
        folder, _, _ = prefix.rpartition("/")
        start = self._root / folder if folder else self._root
        with self._translated("list", prefix):
            found = sorted(_walk(str(start), f"{folder}/" if folder else "", prefix))
        return (ObjectInfo(key, size) for key, size in found)

    def delete(self, key: str) -> None:
        """See `Store`."""
        with self._translated("delete", key):
            self._path(key).unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is held open."""

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _make_folder(self, folder: Path) -> None:
        """Create *folder*; on return its own entry and its parents' are durable."""
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            _sync_folder(new.parent)

    def _sweep(self, now: float) -> None:
        for entry in self._root.glob(f"{_TEMPORARY}*"):
            # Another process may have removed it, or the file system may be mounted for reading only.
            with contextlib.suppress(OSError):
                if now - entry.stat().st_mtime > _STALE_AFTER:
                    entry.unlink()

    @contextlib.contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _raise(error, f"{verb} {self._root / key}" if key else f"{verb} {self._root}")


def _raise(error: OSError, what: str) -> NoReturn:
    reason = error.strerror or str(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        raise NotFoundError(f"cannot {what}: there is no such object") from error
    if error.errno in _FORBIDDEN:
        raise AccessError(f"cannot {what}: {reason}; check its owner and mode") from error
    if error.errno in _FULL:
        raise TemporaryError(f"cannot {what}: {reason}; nothing of it was kept. Free some space") from error
    if error.errno in {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN}:
        raise TemporaryError(f"cannot {what}: {reason}") from error
    raise VmkeepError(f"cannot {what}: {reason}") from error


def _walk(folder: str, base: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield key and size of every object whose key starts with *prefix*, in no order."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        key = base + entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if key.startswith(prefix) or prefix.startswith(f"{key}/"):
                yield from _walk(entry.path, f"{key}/", prefix)
        elif key.startswith(prefix):
            with contextlib.suppress(FileNotFoundError):  # deleted since
                yield key, entry.stat(follow_symlinks=False).st_size


def _adopt(body: Path, final: Path) -> bool | None:
    """Link the caller's own file; `None`: it lies where it cannot be linked from, so must be copied."""
    try:
        os.link(body, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            return None
        raise
    _sync_folder(final.parent)
    return True


def _link(temporary: Path, final: Path) -> bool:
    """Give our temporary file its final name, unless the name is taken."""
    try:
        os.link(temporary, final)
    except OSError as error:
        # NFS: the answer may have been lost, and the repeated call then found our own link.
        if not (final.exists() and final.samefile(temporary)):
            if isinstance(error, FileExistsError):
                return False
            raise
    _sync_folder(final.parent)
    return True


def _write_durably(path: Path, body: bytes | Path, pace: Pace | None) -> None:
    with path.open("xb") as file:
        with io.BytesIO(body) if isinstance(body, bytes) else body.open("rb") as source:
            paced = PacedFile(source, pace, sending=True) if pace is not None else source
            shutil.copyfileobj(paced, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
