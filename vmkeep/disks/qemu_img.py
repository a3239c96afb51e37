"""What qemu-img knows and does: the shape of an image, new images, growing, checking, committing.

Formats are always named, never guessed: a guest could write another format's header into its raw disk
and so make the host open any file it likes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmkeep.disks import tools
from vmkeep.errors import SourceChangedError, SourceError

if TYPE_CHECKING:
    from pathlib import Path

FORMATS: Final = {"raw": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vhdx": "vhdx"}
"""Format (also QEMU's driver) by file extension."""

_QUICK_S: Final = 60.0
_LONG_S: Final = 24 * 3600.0
_DEEPEST_CHAIN: Final = 32
# What only a change of the image by someone else, or a running VM, can cause.
_LOCKED: Final = "Is another process using the image"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """The shape of an image."""

    size: int
    """Virtual size in bytes."""
    allocated: int
    """Bytes its files take on the host."""
    files: tuple[Path, ...]
    """All files its content lies in: itself, its extents, its backing chain."""


def info(path: Path, format: str, *, what: str) -> ImageInfo:  # noqa: A002  (the word of the fleet file)
    """Read the shape of an image, with all that it refers to.

    Raises:
        SourceError: it is missing, damaged, or refers to a file outside of its own folder.
    """
    folder = path.parent.resolve()
    files: list[Path] = []
    size = allocated = 0
    current: tuple[Path, str] | None = (path, format)
    while current is not None:
        if len(files) > _DEEPEST_CHAIN:
            raise SourceError(f"{what} ({path}): its chain of backing files does not end")
        described = _describe(*current, what=what)
        size = size or int(described["virtual-size"])
        allocated += int(described.get("actual-size", 0))
        files += [current[0], *_extents(described, current[0], folder, what)]
        current = _backing(described, current[0], folder, what)
    return ImageInfo(size, allocated, tuple(dict.fromkeys(files)))


def create(path: Path, format: str, size: int, *, backing: tuple[Path, str] | None = None) -> None:  # noqa: A002
    """Make a new image of *size* bytes that reads as zeros, or as its *backing* (path, format)."""
    base = ["-b", str(backing[0].resolve()), "-F", backing[1]] if backing else []
    tools.run("qemu-img", "create", "-q", "-f", format, *base, str(path), str(size), timeout_s=_QUICK_S)


def create_over(path: Path, uri: str, size: int) -> None:
    """Make an overlay (qcow2) of *size* bytes over what an NBD server shows; it is not connected to.

    Args:
        uri: See `qemu(1)`, "Network Block Device": `nbd+unix:///EXPORT?socket=PATH`.
    """
    tools.run(
        "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", uri, "-F", "raw", str(path), str(size),
        timeout_s=_QUICK_S,
    )  # fmt: skip


def rebase_over(overlay: Path, uri: str) -> None:
    """Tell *overlay* (qcow2) that it lies over what an NBD server shows; its content is not touched."""
    tools.run(
        "qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", uri, str(overlay),
        timeout_s=_QUICK_S,
    )  # fmt: skip


def backing(path: Path, *, what: str) -> str:
    """Return what a qcow2 image, which may be in use, says that it lies over; empty: nothing.

    Raises:
        SourceError: it is missing or damaged.
    """
    try:
        done = tools.run(
            "qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(path), timeout_s=_QUICK_S
        )
    except SourceError as error:
        raise translated(error, f"{what} ({path})") from error
    return str(json.loads(done.stdout).get("backing-filename", ""))


def grow(path: Path, format: str, size: int) -> None:  # noqa: A002
    """Make an image larger; its content stays."""
    tools.run("qemu-img", "resize", "-q", "-f", format, str(path), str(size), timeout_s=_QUICK_S)


def check(path: Path, format: str, *, what: str) -> None:  # noqa: A002
    """Check the inner consistency of an image; formats without such a check pass.

    Raises:
        SourceError: it is damaged.
    """
    # 3 is "leaked clusters only", 63 "this format has no check". See: qemu-img(1), check.
    try:
        tools.run("qemu-img", "check", "-q", "-f", format, str(path), timeout_s=_LONG_S, accept=(0, 3, 63))
    except SourceError as error:
        raise translated(error, f"{what} ({path})") from error


def commit(overlay: Path) -> None:
    """Write what *overlay* (qcow2) holds into its backing file; doing it again is harmless."""
    tools.run("qemu-img", "commit", "-q", "-d", "-f", "qcow2", str(overlay), timeout_s=_LONG_S)


def rebase(overlay: Path, backing: Path, format: str) -> None:  # noqa: A002
    """Tell *overlay* (qcow2) that its backing file is called *backing* now; its content is not touched."""
    tools.run(
        "qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", format, "-b", str(backing.resolve()),
        str(overlay), timeout_s=_QUICK_S,
    )  # fmt: skip


def translated(error: SourceError, what: str) -> SourceError:
    """Return what a failed QEMU tool means for the operator."""
    if _LOCKED in str(error):
        return SourceChangedError(
            f"{what} is in use: a virtual machine runs on it, or another tool writes it; "
            "power the VM off, then try again"
        )
    return SourceError(f"{what} cannot be read as an image: {error}")


def _describe(path: Path, format: str, *, what: str) -> dict[str, Any]:  # noqa: A002
    if not path.is_file() and not path.is_block_device():
        raise SourceError(f"{what}: {path} is missing")
    try:
        done = tools.run(
            "qemu-img", "info", "-f", format, "--output=json", str(path.resolve()), timeout_s=_QUICK_S
        )
    except SourceError as error:
        raise translated(error, f"{what} ({path})") from error
    described: dict[str, Any] = json.loads(done.stdout)
    return described


def _extents(described: dict[str, Any], image: Path, folder: Path, what: str) -> list[Path]:
    """Return the extra files of one image: vmdk extents. An external data file (qcow2) is refused."""
    specific = described.get("format-specific", {}).get("data", {})
    if "data-file" in specific:
        raise SourceError(
            f"{what} ({image}): keeps its data in the external file {specific['data-file']!r}; "
            "vmkeep does not open such images, convert it with qemu-img convert"
        )
    names = [str(extent["filename"]) for extent in specific.get("extents", ())]
    return [_inside(name, image, folder, what) for name in names]


def _backing(described: dict[str, Any], image: Path, folder: Path, what: str) -> tuple[Path, str] | None:
    name = described.get("full-backing-filename") or described.get("backing-filename")
    if not name:
        return None
    format = described.get("backing-filename-format")  # noqa: A001
    if format not in FORMATS.values():
        raise SourceError(
            f"{what} ({image}): does not say in which format its backing file {name!r} is; "
            f"name it with qemu-img rebase -u -F FORMAT -b {name} {image.name}"
        )
    return _inside(str(name), image, folder, what), str(format)


def _inside(name: str, image: Path, folder: Path, what: str) -> Path:
    """Return a file that *image* refers to.

    Raises:
        SourceError: it is not a file below the image's own folder. Headers come from whoever wrote the image.
    """
    path = (image.parent / name).resolve()
    if not path.is_relative_to(folder) or not path.is_file():
        raise SourceError(
            f"{what} ({image}): refers to {name!r}, which is not a file in {folder}; "
            "an image from someone else could so read any file of this machine. "
            "Flatten it with qemu-img convert, if it is right"
        )
    return path
