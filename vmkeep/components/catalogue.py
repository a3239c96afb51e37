"""The catalogue of a saved file tree: one line of JSON for each entry, in the order they were found.

A tree is saved as two streams: the catalogue, and `content`, the data of all files one after another.
Holes are in neither:

    file      [data   ][hole     ][data]
    extents   (0, 700, 8)         (20, 708, 5)        file offset, offset in `content`, length
    content   …[data   ][data]…
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vmkeep.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

KINDS: Final = ("folder", "file", "link", "character", "block", "pipe", "socket")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder, link or special file of a guest."""

    path: tuple[bytes, ...]
    """The names from the guest's root; any bytes but `/` and NUL."""
    kind: str
    """One of `KINDS`."""
    mode: int
    """Permission bits with set-user-id, set-group-id and sticky."""
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    extents: tuple[tuple[int, int, int], ...] = ()
    """File offset, offset in `content`, and length of each range with data, in bytes."""
    target: bytes = b""
    """Where a symbolic link points."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device."""
    same_as: tuple[bytes, ...] | None = None
    """The first path of the same file, for further hard links."""
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    """Extended attributes, with access control lists and capabilities."""
    passage: bool = False
    """A folder on the way to what was asked for: made where it is missing, otherwise left alone."""

    def to_line(self) -> bytes:
        """Return the entry's line, with its newline."""
        fields: dict[str, Any] = {
            "path": _text(b"/".join(self.path)),
            "kind": self.kind,
            "mode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
            "mtime": self.mtime_ns,
        }
        if self.kind == "file":
            fields |= {"size": self.size, "extents": self.extents}
        if self.kind == "link":
            fields["target"] = _text(self.target)
        if self.kind in {"character", "block"}:
            fields["device"] = self.device
        if self.same_as is not None:
            fields["same_as"] = _text(b"/".join(self.same_as))
        if self.xattrs:
            fields["xattrs"] = {
                name.decode("utf-8", "surrogateescape"): base64.b64encode(value).decode()
                for name, value in self.xattrs.items()
            }
        if self.passage:
            fields["passage"] = True
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def read(blocks: Iterable[bytes]) -> Iterator[Entry]:
    """Yield the entries of a catalogue that comes in blocks of any size.

    Raises:
        IntegrityError: a line is no entry, or names a path that could lead elsewhere.
    """
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from map(parse, lines)
    if rest:
        raise IntegrityError("the catalogue of files ends in the middle of a line: do not restore from it")


def parse(line: bytes) -> Entry:
    """Return the entry of one line, without its newline.

    Raises:
        IntegrityError: as above.
    """
    try:
        fields = json.loads(line)
        entry = Entry(
            path=_names(fields["path"]),
            kind=fields["kind"],
            mode=int(fields["mode"]) & 0o7777,
            uid=int(fields["uid"]),
            gid=int(fields["gid"]),
            mtime_ns=int(fields["mtime"]),
            size=int(fields.get("size", 0)),
            extents=tuple((int(a), int(b), int(c)) for a, b, c in fields.get("extents", ())),
            target=_bytes(fields.get("target", "")),
            device=(int(fields["device"][0]), int(fields["device"][1])) if "device" in fields else (0, 0),
            same_as=_names(fields["same_as"]) if "same_as" in fields else None,
            xattrs={
                name.encode("utf-8", "surrogateescape"): base64.b64decode(value, validate=True)
                for name, value in fields.get("xattrs", {}).items()
            },
            passage=bool(fields.get("passage", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise IntegrityError(
            f"the catalogue of files has the line {line[:200]!r}: do not restore from it"
        ) from error
    if entry.kind not in KINDS or b"" in entry.path or {b".", b".."} & {*entry.path, *(entry.same_as or ())}:
        raise IntegrityError(f"the catalogue of files has the entry {line[:200]!r}: do not restore from it")
    return entry


def _text(raw: bytes) -> str:
    """Return any bytes as text, from which `_bytes` gets them back: what is no UTF-8 becomes surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _names(text: str) -> tuple[bytes, ...]:
    return tuple(_bytes(text).split(b"/")) if text else ()
