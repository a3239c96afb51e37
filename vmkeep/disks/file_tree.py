"""A tree of files put together from mounted file systems, in which no path leads out.

The files come from a guest, whose symbolic links may point anywhere. So paths are walked name by name,
no link is ever followed by the kernel, and an absolute link starts again at the tree's own root.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from vmkeep.errors import NotFoundError, SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmkeep.errors import VmkeepError

_MOST_LINKS: Final = 40
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a path really leads."""

    names: tuple[bytes, ...]
    links: tuple[tuple[bytes, ...], ...]
    """The symbolic links on the way, each by its own real path."""


class FileTree:
    """A root folder, and others mounted below it. Paths are tuples of names, without links."""

    def __init__(
        self,
        root: Path,
        *,
        mounts: Mapping[tuple[bytes, ...], Path] | None = None,
        blocked: Mapping[tuple[bytes, ...], VmkeepError] | None = None,
    ) -> None:
        """Put the tree together.

        Args:
            mounts: Folder of this host by mount point.
            blocked: Why what belongs at a mount point cannot be opened; raised by whoever goes there.
        """
        self.root = root
        self._mounts = {(): root, **(mounts or {})}
        self._blocked = dict(blocked or {})

    def open_folder(self, names: tuple[bytes, ...]) -> int:
        """Return a descriptor of the folder.

        Raises:
            NotFoundError: it is not there, or something on the way is no folder.
        """
        start = next(k for k in range(len(names), -1, -1) if names[:k] in self._mounts)
        self._check(names)
        fd = os.open(self._mounts[names[:start]], _FOLDER)
        for count in range(start, len(names)):
            try:
                below = os.open(names[count], _FOLDER, dir_fd=fd)
            except OSError as error:
                raise NotFoundError(f"{show(names[: count + 1])}: {error.strerror}") from error
            finally:
                os.close(fd)
            fd = below
        return fd

    def status(self, names: tuple[bytes, ...], folder: int) -> os.stat_result:
        """Return the status of the last of *names*, which is in the open *folder*; follows nothing."""
        self._check(names)
        if names in self._mounts:
            return self._mounts[names].stat()
        return os.stat(names[-1], dir_fd=folder, follow_symlinks=False)

    def host_path(self, names: tuple[bytes, ...], folder: int) -> bytes:
        """Return a path of this host to the last of *names*, for calls that take no descriptor.

        It goes through the open *folder*, so no link of the guest is on the way; the last name itself
        may be one: never let it be followed.
        """
        if names in self._mounts:
            return os.fsencode(self._mounts[names])
        return b"/proc/self/fd/%d/%s" % (folder, names[-1])

    def is_mount(self, names: tuple[bytes, ...]) -> bool:
        """Tell whether another file system begins there."""
        return names in self._mounts

    def resolve(self, path: bytes) -> Resolved:
        """Follow *path* as the guest would.

        Raises:
            NotFoundError: it is not there.
            SourceError: its links go round in circles.
        """
        left = _split(path)
        real: tuple[bytes, ...] = ()
        links: list[tuple[bytes, ...]] = []
        while left:
            name, left = left[0], left[1:]
            if name == b"..":
                real = real[:-1]
                continue
            target = self._link(real, name, path)
            if target is None:
                real = (*real, name)
                continue
            links.append((*real, name))
            if len(links) > _MOST_LINKS:
                raise SourceError(f"{os.fsdecode(path)}: too many symbolic links")
            left = _split(target) + left
            if target.startswith(b"/"):
                real = ()
        return Resolved(real, tuple(links))

    def open_file(self, path: bytes) -> BinaryIO:
        """Open a regular file for reading, wherever *path* leads in the guest.

        Raises:
            NotFoundError: it is not there, or no regular file.
        """
        names = self.resolve(path).names
        folder = self.open_folder(names[:-1])
        try:
            name = names[-1] if names else b"."
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            raise NotFoundError(f"{show(names)}: {error.strerror}") from error
        finally:
            os.close(folder)
        file = os.fdopen(fd, "rb")
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            file.close()
            raise NotFoundError(f"{show(names)} is no regular file")
        return file

    def read(self, path: bytes, *, most: int) -> bytes | None:
        """Return the first *most* bytes of a regular file, or None when there is none."""
        try:
            with self.open_file(path) as file:
                return file.read(most)
        except NotFoundError:
            return None

    def names(self, path: bytes) -> list[bytes]:
        """Return the sorted names in a folder; empty where there is none."""
        try:
            folder = self.open_folder(self.resolve(path).names)
        except NotFoundError:
            return []
        try:
            return names_in(folder)
        finally:
            os.close(folder)

    def exists(self, path: bytes) -> bool:
        """Tell whether *path* leads anywhere."""
        try:
            self.resolve(path)
        except NotFoundError:
            return False
        return True

    def _link(self, real: tuple[bytes, ...], name: bytes, path: bytes) -> bytes | None:
        """Return where the symbolic link *name* in *real* points to; None if it is none."""
        folder = self.open_folder(real)
        try:
            if not stat.S_ISLNK(self.status((*real, name), folder).st_mode):
                return None
            return os.readlink(name, dir_fd=folder)
        except OSError as error:
            raise NotFoundError(f"{os.fsdecode(path)}: {error.strerror}") from error
        finally:
            os.close(folder)

    def _check(self, names: tuple[bytes, ...]) -> None:
        for count in range(len(names) + 1):
            if names[:count] in self._blocked:
                raise self._blocked[names[:count]]


def names_in(folder: int) -> list[bytes]:
    """Return the sorted names in an open folder, as the bytes they are."""
    return sorted(map(os.fsencode, os.listdir(folder)))


def show(names: tuple[bytes, ...]) -> str:
    """Return the path for people."""
    return "/" + b"/".join(names).decode("utf-8", "backslashreplace")


def _split(path: bytes) -> tuple[bytes, ...]:
    return tuple(name for name in path.split(b"/") if name not in {b"", b"."})
