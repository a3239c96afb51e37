"""Saving trees of files: every entry with all that belongs to it, holes left out, in a fixed order."""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
import tempfile
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Final

from vmkeep.components import catalogue
from vmkeep.components.catalogue import Entry
from vmkeep.disks.file_tree import FileTree, names_in, show
from vmkeep.errors import SourceChangedError, SourceError
from vmkeep.units import KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from vmkeep.components.base import StreamWriter
    from vmkeep.repository.manifest import Stats, StreamRef

_BLOCK: Final = MiB
_PAGE: Final = 4 * KiB
_ZEROS: Final = bytes(_BLOCK)
_IN_MEMORY: Final = 4 * MiB
_NO_XATTRS: Final = {errno.EOPNOTSUPP, errno.ENOSYS}
_KIND_OF: Final = {
    stat.S_IFDIR: "folder",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}


@dataclass(slots=True)
class Counts:
    """What a saved tree holds."""

    entries: int = 0
    files: int = 0
    size: int = 0
    """Bytes of data, without holes; hard links count once."""


@dataclass(frozen=True, slots=True)
class SavedTree:
    """The two streams of a tree, and what they hold."""

    content: StreamRef
    catalogue: StreamRef
    counts: Counts
    stats: Stats
    real_paths: tuple[str, ...]
    """Where each of the paths asked for really leads, for people."""


def save_tree(  # noqa: PLR0913  (each is a keyword, and none belongs to another)
    tree: FileTree,
    paths: Sequence[bytes],
    *,
    exclude: Sequence[str] = (),
    contents: Mapping[tuple[bytes, ...], Path] | None = None,
    writer: StreamWriter,
    scratch: Path,
    what: str,
    progress: Callable[[int], None] | None = None,
) -> SavedTree:
    """Save what lies at and below *paths*; the catalogue waits in *scratch* until the content is saved.

    Args:
        exclude: Patterns: without a slash they match names, with one the path below one of *paths*.
        contents: Files whose data is taken from these files of this host instead, by real path.
        what: How errors call the source.

    Raises:
        NotFoundError: one of *paths* is not there.
        SourceError: something cannot be read.
        SourceChangedError: a file changed while it was read.
    """
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(scratch)) as lines:
        walk = _Walk(tree, lines, exclude, contents or {}, what)
        content, content_stats = writer.save_stream(walk.content(paths), progress=progress)
        lines.seek(0)
        listed, lines_stats = writer.save_stream(iter(lambda: lines.read(_BLOCK), b""))
    return SavedTree(content, listed, walk.counts, content_stats + lines_stats, tuple(walk.real_paths))


def list_tree(tree: FileTree, paths: Sequence[bytes], *, scratch: Path, what: str) -> Iterator[Entry]:
    """Yield what lies at and below *paths* without reading any content: entries have no extents.

    Raises:
        NotFoundError: one of *paths* is not there.
        SourceError: something cannot be read.
    """
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(scratch)) as lines:
        for _ in _Walk(tree, lines, (), {}, what, with_content=False).content(paths):
            raise AssertionError("content was read")  # pragma: no cover
        lines.seek(0)
        yield from catalogue.read(iter(lambda: lines.read(_BLOCK), b""))


@dataclass(slots=True)
class _Walk:
    """One pass over the tree: yields the content, and notes each entry in the catalogue."""

    tree: FileTree
    lines: IO[bytes]
    """The catalogue."""
    exclude: Sequence[str]
    contents: Mapping[tuple[bytes, ...], Path]
    what: str
    with_content: bool = True
    counts: Counts = field(default_factory=Counts)
    real_paths: list[str] = field(default_factory=list)
    _position: int = 0
    """Bytes of content so far."""
    _linked: dict[tuple[int, int], Entry] = field(default_factory=dict)
    """The first entry of each file that has several names."""
    _noted: set[tuple[bytes, ...]] = field(default_factory=set)
    """Links and ways that have an entry."""
    _walked: list[tuple[bytes, ...]] = field(default_factory=list)
    """What was saved with all below it."""

    def content(self, paths: Sequence[bytes]) -> Iterator[bytes]:
        for path in paths:
            found = self.tree.resolve(path)
            self.real_paths.append(show(found.names))
            for link in found.links:
                yield from self._way(link)
                yield from self._once(link)
            if not any(found.names[: len(done)] == done for done in self._walked):
                yield from self._way(found.names)
                yield from self._below(found.names)
                self._walked.append(found.names)

    def _way(self, names: tuple[bytes, ...]) -> Iterator[bytes]:
        """Note the folders that lead to *names*."""
        for count in range(1, len(names)):
            yield from self._once(names[:count], passage=True)

    def _once(self, names: tuple[bytes, ...], *, passage: bool = False) -> Iterator[bytes]:
        if names not in self._noted:
            self._noted.add(names)
            with _Folder(self.tree, names[:-1]) as folder:
                yield from self._entry(names, folder, passage=passage)

    def _below(self, start: tuple[bytes, ...]) -> Iterator[bytes]:
        """Note *start*, and all below it: the children of a folder together, then each of its folders."""
        is_folder = True
        if start:
            with _Folder(self.tree, start[:-1]) as folder:
                is_folder = stat.S_ISDIR(self.tree.status(start, folder).st_mode)
                yield from self._entry(start, folder)
        waiting = [start] if is_folder else []
        while waiting:
            names = waiting.pop()
            with _Folder(self.tree, names) as folder:
                below = []
                for name in self._names(names, folder):
                    child = (*names, name)
                    if self._excluded(child, start) or child in self._walked:
                        continue
                    yield from self._entry(child, folder)
                    if stat.S_ISDIR(self.tree.status(child, folder).st_mode):
                        below.append(child)
            waiting.extend(reversed(below))

    def _names(self, names: tuple[bytes, ...], folder: int) -> list[bytes]:
        try:
            return names_in(folder)
        except OSError as error:
            raise SourceError(f"{self.what}: {show(names)}: {error.strerror}") from error

    def _excluded(self, names: tuple[bytes, ...], start: tuple[bytes, ...]) -> bool:
        name = os.fsdecode(names[-1])
        below = "/" + os.fsdecode(b"/".join(names[len(start) :]))
        return any(fnmatch.fnmatchcase(below if "/" in rule else name, rule) for rule in self.exclude)

    def _entry(self, names: tuple[bytes, ...], folder: int, *, passage: bool = False) -> Iterator[bytes]:
        try:
            found = self.tree.status(names, folder)
            entry = self._describe(names, folder, found, passage=passage)
            if entry.kind == "file" and entry.same_as is None:
                extents: list[tuple[int, int, int]] = []
                fd = self._open(names, folder)
                try:
                    before = os.fstat(fd)
                    if self.with_content:
                        yield from self._data(names, fd, before, extents)
                finally:
                    os.close(fd)
                entry = replace(entry, size=before.st_size, extents=tuple(extents))
                if found.st_nlink > 1:
                    self._linked[found.st_dev, found.st_ino] = entry
        except OSError as error:
            raise SourceError(f"{self.what}: {show(names)}: {error.strerror}") from error
        self.lines.write(entry.to_line())
        self.counts.entries += 1
        self.counts.files += entry.kind == "file"

    def _describe(
        self, names: tuple[bytes, ...], folder: int, found: os.stat_result, *, passage: bool
    ) -> Entry:
        kind = _KIND_OF[stat.S_IFMT(found.st_mode)]
        first = (
            self._linked.get((found.st_dev, found.st_ino)) if kind == "file" and found.st_nlink > 1 else None
        )
        is_device = kind in {"character", "block"}
        return Entry(
            names,
            kind,
            stat.S_IMODE(found.st_mode),
            found.st_uid,
            found.st_gid,
            found.st_mtime_ns,
            size=found.st_size if kind == "file" else 0,
            extents=first.extents if first else (),
            target=os.readlink(names[-1], dir_fd=folder) if kind == "link" else b"",
            device=(os.major(found.st_rdev), os.minor(found.st_rdev)) if is_device else (0, 0),
            same_as=first.path if first else None,
            xattrs=_xattrs(self.tree, names, folder),
            passage=passage,
        )

    def _open(self, names: tuple[bytes, ...], folder: int) -> int:
        if names in self.contents:
            return os.open(self.contents[names], os.O_RDONLY | os.O_CLOEXEC)
        return os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)

    def _data(
        self, names: tuple[bytes, ...], fd: int, before: os.stat_result, extents: list[tuple[int, int, int]]
    ) -> Iterator[bytes]:
        """Yield the file's data and note where it belongs; in a sparse file zeros are taken for holes."""
        # FUSE file systems do not tell where holes are, only that there must be some.
        sparse = before.st_blocks * 512 < before.st_size
        for offset in range(0, before.st_size, _BLOCK):
            wanted = min(_BLOCK, before.st_size - offset)
            block = os.pread(fd, wanted, offset)
            if len(block) < wanted:
                raise self._changed(names)
            for start, length in _data_ranges(block) if sparse else ((0, len(block)),):
                self._note(extents, offset + start, length)
                yield block if length == len(block) else block[start : start + length]
        after = os.fstat(fd)
        if (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != (
            before.st_size, before.st_mtime_ns, before.st_ctime_ns,
        ):  # fmt: skip
            raise self._changed(names)

    def _note(self, extents: list[tuple[int, int, int]], offset: int, length: int) -> None:
        if extents and extents[-1][0] + extents[-1][2] == offset:
            before = extents.pop()
            extents.append((before[0], before[1], before[2] + length))
        else:
            extents.append((offset, self._position, length))
        self._position += length
        self.counts.size += length

    def _changed(self, names: tuple[bytes, ...]) -> SourceChangedError:
        return SourceChangedError(f"{self.what}: {show(names)} changed while it was read: back it up again")


class _Folder:
    """An open folder for the length of a `with` block."""

    def __init__(self, tree: FileTree, names: tuple[bytes, ...]) -> None:
        self._tree, self._names = tree, names

    def __enter__(self) -> int:
        self._fd = self._tree.open_folder(self._names)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _data_ranges(block: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and length of the runs of pages that are not all zeros."""
    if block == _ZEROS[: len(block)]:
        return
    start = None
    for at in range(0, len(block), _PAGE):
        page = block[at : at + _PAGE]
        is_zero = page == _ZEROS[: len(page)]
        if is_zero and start is not None:
            yield start, at - start
            start = None
        elif not is_zero and start is None:
            start = at
    if start is not None:
        yield start, len(block) - start


def _xattrs(tree: FileTree, names: tuple[bytes, ...], folder: int) -> dict[bytes, bytes]:
    path = tree.host_path(names, folder)
    try:
        found = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return {}
        raise
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in sorted(found)}
