"""Restoring trees of files: into a guest's own file systems, or into a plain folder.

Each file is written beside its place and renamed into it, unless the tree as a whole is all or nothing:
renaming is by far the slowest thing that fuse2fs does (1.2 ms, more than all the rest together). The
times of folders come last, because everything that happens in a folder changes them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vmkeep.components import catalogue
from vmkeep.disks.file_tree import FileTree, names_in, show
from vmkeep.errors import AccessError, IntegrityError, NotFoundError, SourceError
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmkeep.components.base import StreamReader
    from vmkeep.components.catalogue import Entry
    from vmkeep.repository.manifest import StreamRef

_BLOCK: Final = MiB
_SPECIAL: Final = {
    "character": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "pipe": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
}
_DEVICES: Final = {"character", "block"}
_OURS: Final = b"user."
_NO_XATTRS: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a tree to restore, and how."""

    paths: tuple[tuple[bytes, ...], ...] = ((),)
    """These and all below them; the empty path is everything."""
    exact: bool = False
    """Remove what the recovery point does not have."""
    owners: bool = True
    """False: all files become ours, without devices and privileged attributes."""

    in_place: bool = False
    """Write files under their own names at once: for a tree that is thrown away when anything fails."""

    def takes(self, entry: Entry) -> bool:
        """Tell whether the entry is one of *paths*, or below one."""
        return not entry.passage and any(entry.path[: len(path)] == path for path in self.paths)

    def passes(self, entry: Entry) -> bool:
        """Tell whether the entry is a folder on the way to what is chosen."""
        if entry.kind != "folder" or self.takes(entry):
            return False
        if any(path[: len(entry.path)] == entry.path and path != entry.path for path in self.paths):
            return True
        return entry.passage and any(entry.path[: len(path)] == path for path in self.paths)


def entries(reader: StreamReader, ref: StreamRef) -> Iterator[Entry]:
    """Yield the entries of a saved tree, in their order."""
    return catalogue.read(reader.read_stream(ref))


def restore_tree(  # noqa: PLR0913  (each is a keyword, and none belongs to another)
    reader: StreamReader,
    *,
    content: StreamRef,
    catalogue_ref: StreamRef,
    into: FileTree,
    choice: Choice,
    what: str,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the chosen entries into a tree; return how many.

    Raises:
        NotFoundError: one of the chosen paths is not in the recovery point.
        AccessError: it needs root, and we are not.
        SourceError: the target cannot take it: it is full, or has something else in the way.
        IntegrityError: stored data is damaged.
    """
    if choice.owners and os.geteuid() != 0:
        chosen = (entry for entry in entries(reader, catalogue_ref) if choice.takes(entry))
        _require_no_root(chosen, into_image=choice.in_place)
    seen = set()
    with contextlib.closing(Content(reader, content)) as data:
        writer = _Writer(into, data, choice, what, progress)
        for entry in entries(reader, catalogue_ref):
            if choice.takes(entry) or choice.passes(entry):
                writer.write(entry)
            seen |= {path for path in choice.paths if entry.path[: len(path)] == path and not entry.passage}
    lost = [show(path) for path in choice.paths if path not in seen and path]
    if lost:
        raise NotFoundError(f"{what}: the recovery point does not have {', '.join(lost)}")
    if choice.exact:
        writer.remove_others(entries(reader, catalogue_ref))
    for entry in entries(reader, catalogue_ref):
        if entry.kind == "folder" and (choice.takes(entry) or entry.path in writer.made):
            writer.finish_folder(entry)
    return writer.count


class Content:
    """The content stream, read forward in one go where the ranges asked for follow each other."""

    def __init__(self, reader: StreamReader, ref: StreamRef) -> None:
        self._reader, self._ref = reader, ref
        self._blocks: Iterator[bytes] = iter(())
        self._rest = memoryview(b"")
        self._at = -1

    def read(self, start: int, length: int) -> Iterator[memoryview]:
        """Yield *length* bytes from *start*, in parts.

        Raises:
            IntegrityError: the stream ends before.
        """
        if start != self._at:
            self.close()
            self._blocks = self._reader.read_stream(self._ref, start)
            self._rest = memoryview(b"")
            self._at = start
        while length > 0:
            if not self._rest:
                block = next(self._blocks, b"")
                if not block:
                    raise IntegrityError(
                        f"the content of files ends at byte {self._at}: do not restore from it"
                    )
                self._rest = memoryview(block)
            part, self._rest = self._rest[:length], self._rest[length:]
            self._at += len(part)
            length -= len(part)
            yield part

    def close(self) -> None:
        """Stop reading ahead."""
        if isinstance(self._blocks, Generator):
            self._blocks.close()


@dataclass(slots=True)
class _Writer:
    """Writes entries into a tree, in the order of the catalogue."""

    tree: FileTree
    content: Content
    choice: Choice
    what: str
    progress: Callable[[int], None] | None
    count: int = 0
    made: set[tuple[bytes, ...]] = field(default_factory=set)
    """Folders on the way that were missing."""
    _first: dict[tuple[bytes, ...], tuple[bytes, ...]] = field(default_factory=dict)
    """By the first path of a file with several names: the one that was written."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def write(self, entry: Entry) -> None:
        if not entry.path:
            return
        try:
            with self._open(entry.path[:-1]) as folder:
                self._place(entry, folder)
        except OSError as error:
            raise SourceError(f"{self.what}: {show(entry.path)}: {error.strerror}") from error
        self.count += 1

    def finish_folder(self, entry: Entry) -> None:
        """Give a folder its owner, attributes, permissions and time."""
        try:
            with self._open(entry.path) as fd:
                self._dress(entry, fd)
        except OSError as error:
            raise SourceError(f"{self.what}: {show(entry.path)}: {error.strerror}") from error

    def remove_others(self, all_entries: Iterable[Entry]) -> None:
        """Remove what lies in the chosen folders and is not in the recovery point."""
        chosen = [entry for entry in all_entries if self.choice.takes(entry)]
        known = {entry.path for entry in chosen}
        for entry in chosen:
            if entry.kind == "folder":
                with self._open(entry.path) as folder:
                    for name in names_in(folder):
                        if (*entry.path, name) not in known and not self.tree.is_mount((*entry.path, name)):
                            _remove(name, folder)

    def _place(self, entry: Entry, folder: int) -> None:
        name = entry.path[-1]
        if entry.kind == "folder":
            self._folder(entry, folder)
            return
        if entry.kind in _DEVICES and not self.choice.owners:
            return
        self._make_room(entry, folder)
        if self.choice.in_place:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            self._make(entry, folder, name)
            return
        new = b".vmkeep-%d-%d" % (os.getpid(), next(self._numbers))
        try:
            self._make(entry, folder, new)
            os.replace(new, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            # Also after success: renaming one name of a file over another of it does nothing.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=folder)

    def _make(self, entry: Entry, folder: int, name: bytes) -> None:
        """Make what is not a folder, under a name that is free."""
        if entry.kind == "file":
            self._file(entry, folder, name)
            return
        if entry.kind == "link":
            os.symlink(entry.target, name, dir_fd=folder)
        else:
            mode = _SPECIAL[entry.kind] | stat.S_IMODE(entry.mode)
            os.mknod(name, mode, os.makedev(*entry.device), dir_fd=folder)
        self._dress_in_place(entry, folder, name)

    def _folder(self, entry: Entry, folder: int) -> None:
        name = entry.path[-1]
        with contextlib.suppress(FileNotFoundError):
            if self.tree.is_mount(entry.path) or stat.S_ISDIR(_status(name, folder).st_mode):
                return
            self._clear(entry, folder)
        os.mkdir(name, 0o700, dir_fd=folder)
        self.made.add(entry.path)

    def _make_room(self, entry: Entry, folder: int) -> None:
        """Remove a folder that is where something else belongs."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(_status(entry.path[-1], folder).st_mode):
                self._clear(entry, folder)

    def _clear(self, entry: Entry, folder: int) -> None:
        if not self.choice.exact:
            raise SourceError(
                f"{self.what}: {show(entry.path)} is a {entry.kind} in the recovery point and something else "
                "in the target: remove it, or restore exactly what the point has (exact)"
            )
        _remove(entry.path[-1], folder)

    def _file(self, entry: Entry, folder: int, new: bytes) -> None:
        group = entry.same_as or entry.path
        if group in self._first:
            with self._open(self._first[group][:-1]) as other:
                os.link(
                    self._first[group][-1], new, src_dir_fd=other, dst_dir_fd=folder, follow_symlinks=False
                )
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=folder)
        try:
            for offset, start, length in entry.extents:
                at = offset
                for part in self.content.read(start, length):
                    at += _write_all(fd, part, at)
                    if self.progress is not None:
                        self.progress(len(part))
            os.ftruncate(fd, entry.size)
            self._dress(entry, fd)
        finally:
            os.close(fd)
        self._first[group] = entry.path

    def _dress(self, entry: Entry, fd: int) -> None:
        """Give an open file its owner, permissions, attributes and time, in the order that keeps all."""
        if self.choice.owners:
            os.fchown(fd, entry.uid, entry.gid)  # takes set-user-id and capabilities away
        os.fchmod(fd, entry.mode if self.choice.owners else entry.mode & 0o777)
        self._attributes(entry, fd)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _dress_in_place(self, entry: Entry, folder: int, name: bytes) -> None:
        """Do the same for a link or special file, which must not be opened."""
        if self.choice.owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
        if entry.kind != "link":
            os.chmod(name, entry.mode, dir_fd=folder)
        self._attributes(entry, b"/proc/self/fd/%d/%s" % (folder, name))
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)

    def _attributes(self, entry: Entry, file: int | bytes) -> None:
        wanted = entry.xattrs
        if not self.choice.owners:
            wanted = {name: value for name, value in wanted.items() if name.startswith(_OURS)}
        follow = isinstance(file, int)
        try:
            present = [os.fsencode(name) for name in os.listxattr(file, follow_symlinks=follow)]
        except OSError as error:
            if error.errno not in _NO_XATTRS or wanted:
                raise
            return
        for name in present:  # an access control list inherited from the folder, for instance
            if name not in wanted and self.choice.owners:
                os.removexattr(file, name, follow_symlinks=follow)
        for name, value in wanted.items():
            os.setxattr(file, name, value, follow_symlinks=follow)

    @contextlib.contextmanager
    def _open(self, names: tuple[bytes, ...]) -> Iterator[int]:
        fd = self.tree.open_folder(names)
        try:
            yield fd
        finally:
            os.close(fd)


def _require_no_root(chosen: Iterable[Entry], *, into_image: bool) -> None:
    """Check that a user who is not root can restore all of *chosen*.

    Into an image any owner can be given, because fuse2fs pretends; devices and privileged attributes
    are refused by the kernel there, too.

    Raises:
        AccessError: one line that says what needs root, and how to do without.
    """
    owned = devices = privileged = 0
    for entry in chosen:
        owned += entry.uid != os.geteuid() or entry.gid not in {os.getegid(), *os.getgroups()}
        devices += entry.kind in _DEVICES
        privileged += any(name.startswith((b"security.", b"trusted.")) for name in entry.xattrs)
    needs = [
        f"{number} {noun}"
        for number, noun in (
            (0 if into_image else owned, "files of other owners"),
            (devices, "device nodes"),
            (privileged, "files with capabilities or other privileged attributes"),
        )
        if number
    ]
    if needs:
        image = "" if devices or privileged else "restore into the VM's image, "
        raise AccessError(
            f"restoring {', '.join(needs)} needs root; without root, {image}export a tar archive, "
            "or give the owners up (owners=False: all files become yours)"
        )


def _status(name: bytes, folder: int) -> os.stat_result:
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def _write_all(fd: int, data: memoryview, offset: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
    return done


def _remove(name: bytes, folder: int) -> None:
    """Remove a file, or a folder with all in it, following nothing."""
    if not stat.S_ISDIR(_status(name, folder).st_mode):
        os.unlink(name, dir_fd=folder)
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        for below in names_in(fd):
            _remove(below, fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=folder)
