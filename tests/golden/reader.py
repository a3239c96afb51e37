"""Another reader of vmkeep's repositories, written from docs/format.md alone; it imports nothing of vmkeep.

    reader = Reader(folder, secret)
    for point in reader.points():
        for (component, name), disk in point.disks.items():
            ... reader.disk(disk) ...

All that can be checked is checked, and what is wrong is a `DamagedError`. Nothing may be deleted from the
folder meanwhile, for this reader does not say that it reads.
"""

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

ENTRY = struct.Struct("<32sIIII")
ZERO = bytes(32)  # the id of whatever holds zeros only
HEAD, RECORD, TAIL = 32, 48, 16


class DamagedError(Exception):
    """The repository is not what the format says."""


@dataclass(frozen=True)
class Place:
    """Where a chunk lies: its record begins at *offset* of *pack*; *stored* sealed bytes hold *raw* ones."""

    pack: bytes
    offset: int
    stored: int
    raw: int


@dataclass(frozen=True)
class Pack:
    """What an index says about a pack; *crc* is `None` where it says none."""

    size: int
    epoch: int
    crc: int | None


@dataclass(frozen=True)
class Disk:
    """A saved disk: *leaves* are ids, joined."""

    size: int
    chunk: int
    leaves: bytes


@dataclass(frozen=True)
class Stream:
    """A saved stream: *leaves* are ids and lengths, joined."""

    size: int
    leaves: bytes


@dataclass(frozen=True)
class Point:
    """A recovery point; its disks and streams are found by component and name."""

    vm: str
    session: str
    disks: dict[tuple[str, str], Disk]
    streams: dict[tuple[str, str], Stream]


class Reader:
    """A repository in *folder*, opened with what a key file holds, or with a passphrase."""

    def __init__(self, folder: Path, secret: bytes) -> None:
        self.folder = folder
        content = (folder / "format").read_bytes()
        self.format = json.loads(content)
        kind, features = (self.format["format"], self.format["version"]), self.format["features"]
        check(kind == ("vmkeep repository", 1), "format: not a repository of version 1")
        check(not features["read"], f"format: this reader does not know {features['read']}")
        self.id = bytes.fromhex(self.format["repository"])
        self.masters = self._masters(secret, hashlib.sha256(content).digest())
        self.packs: dict[bytes, Pack] = {}
        self.places: dict[bytes, list[Place]] = {}
        self.sound: set[bytes] = set()
        for key in self.keys("index"):
            self._read_index(key)

    def keys(self, below: str) -> list[str]:
        """Return the keys of all objects below a folder, in order."""
        paths = (self.folder / below).rglob("*")
        files = (path for path in paths if path.is_file() and not path.name.startswith("."))
        return sorted(path.relative_to(self.folder).as_posix() for path in files)

    def points(self) -> list[Point]:
        """Return the recovery points that count, the oldest first."""
        tombs = [key for key in self.keys("forgotten") if self.json(key, "forgotten")]
        forgotten = {tomb.removeprefix("forgotten/").partition(".")[0] for tomb in tombs}
        found = []
        for key in self.keys("points"):
            _, vm, session = key.split("/")
            decision = self.json(key, "decision")
            if session in forgotten or "void" in decision:
                continue
            said, disks, streams = decision["point"], {}, {}
            check((said["vm"], said["session"]) == (vm, session), f"{key}: names another point")
            for part, saved in said["components"].items():
                for name, disk in saved["disks"].items():
                    disks[part, name] = Disk(disk["size"], disk["chunk"], base64.b64decode(disk["leaves"]))
                for name, stream in saved["streams"].items():
                    streams[part, name] = Stream(stream["size"], base64.b64decode(stream["leaves"]))
            found.append(Point(vm, session, disks, streams))
        return sorted(found, key=lambda point: point.session)

    def disk(self, disk: Disk) -> Iterator[bytes]:
        """Yield the bytes of a disk, chunk by chunk."""
        left, width = disk.size, self.format["disk"]["leaf"]
        check(
            len(disk.leaves) == 32 * -(-left // (disk.chunk * width)), "a disk has too many or too few leaves"
        )
        for leaf in cut(disk.leaves, 32):
            count = min(width, -(-left // disk.chunk))
            for name in cut(self.chunk(leaf, 32 * count), 32):
                yield self.chunk(name, min(disk.chunk, left))
                left -= min(disk.chunk, left)

    def stream(self, stream: Stream) -> Iterator[bytes]:
        """Yield the bytes of a stream, chunk by chunk."""
        total = 0
        for leaf, below in struct.iter_unpack("<32sQ", stream.leaves):
            entries = [*struct.iter_unpack("<32sI", self.chunk(leaf))]
            check(sum(length for _, length in entries) == below, "a leaf of a stream has another length")
            for name, length in entries:
                yield self.chunk(name, length)
            total += below
        check(total == stream.size, "a stream has another length than its point says")

    def chunk(self, name: bytes, length: int | None = None) -> bytes:
        """Return the chunk of an id, of *length* bytes, from the newest pack in which it is right."""
        if name == ZERO and length is not None:
            return bytes(length)
        failures = []
        for place in reversed(self.places.get(name, [])):
            try:
                data = self._read_record(name, place)
                check(length in (None, len(data)), f"chunk {name.hex()}: {len(data)} bytes, not {length}")
            except (DamagedError, FileNotFoundError) as error:
                failures.append(str(error))
            else:
                return data
        raise DamagedError(f"chunk {name.hex()}: {', '.join(failures) or 'no index says where it lies'}")

    def json(self, key: str, kind: str) -> dict[str, Any]:
        """Return what a sealed object says."""
        found: dict[str, Any] = json.loads(self.payload(key, kind))
        return found

    def payload(self, key: str, kind: str) -> bytes:
        """Return the payload of a sealed object."""
        data = (self.folder / key).read_bytes()
        check(data[:5] == b"VMKO\x01" and data[6:8] == bytes(2), f"{key}: not a sealed object of version 1")
        own = derive(self._key(data[5], "object"), data[8:24], "object")
        body = opened(own, bytes(12), data[24:], data[:24] + self._binding(kind, key.encode()), key)
        (length,) = struct.unpack_from("<I", body)
        check(not any(body[4 + length :]), f"{key}: more than zeros behind its frame")
        return unpacked(body[4 : 4 + length])

    def _masters(self, secret: bytes, digest: bytes) -> list[bytes]:
        """Return the master keys of all data epochs, in order."""
        begins = self._newest_epoch()
        slots = self._slots(begins)
        master = next((found for slot in slots if (found := self._unwrapped(slot, secret, digest))), None)
        if master is None:
            raise DamagedError(f"no slot of {slots} is opened by this secret")
        if begins is None:
            return [master]
        own = derive(master, bytes.fromhex(begins["salt"]), "epoch")
        bound = b"vmkeep/1/epoch\0" + self.id + struct.pack("<I", begins["epoch"]) + begins["id"].encode()
        earlier = opened(own, bytes(12), bytes.fromhex(begins["earlier"]), bound, "the record of the epoch")
        check(len(earlier) == 32 * (begins["epoch"] - 1), "the record of the epoch: too many or too few keys")
        return [*cut(earlier, 32), master]

    def _newest_epoch(self) -> dict[str, Any] | None:
        """Return the record that began the newest epoch, or the copy that counts; `None`: it is the first."""
        records = self.keys("keys/epochs")
        number = int(records[-1].split("/")[-1]) if records else 1
        newest = checked(self.folder / records[-1]) or self._copy_of_epoch(number) if records else None
        check(
            newest or not records, f"the record of epoch {number}: damaged, and there is not one copy of it"
        )
        if self._slots(newest):
            return newest
        return self._copy_of_epoch(number + 1) or newest

    def _copy_of_epoch(self, number: int) -> dict[str, Any] | None:
        """Return the copy that slots have of a record, if all of them have the same."""
        begins = [(checked(self.folder / key) or {}).get("begins") for key in self.keys("keys")]
        copies = [copy for copy in begins if copy and copy["epoch"] == number]
        return copies[0] if copies and all(copy == copies[0] for copy in copies) else None

    def _slots(self, begins: dict[str, Any] | None) -> list[str]:
        """Return what is behind `keys/` in the names of the slots of an epoch."""
        folder = f"keys/{begins['id']}" if begins else "keys"
        slots = [key for key in self.keys(folder) if key.count("/") == folder.count("/") + 1]
        return [slot.removeprefix("keys/") for slot in slots]

    def _unwrapped(self, name: str, secret: bytes, digest: bytes) -> bytes | None:
        """Return the master key in a slot, or `None` if it is damaged or the secret is not its own."""
        slot, (key, is_passphrase) = checked(self.folder / "keys" / name), secret_of(secret)
        if slot is None or slot["derivation"] != ("scrypt" if is_passphrase else "hkdf"):
            return None
        salt = bytes.fromhex(slot["salt"])
        if is_passphrase:
            wrapping = Scrypt(salt=salt, length=32, n=slot["n"], r=slot["r"], p=slot["p"]).derive(key)
        else:
            wrapping = derive(key, salt, "slot")
        try:
            bound = b"vmkeep/1/slot\0" + name.encode()
            inside = AESGCM(wrapping).decrypt(bytes(12), bytes.fromhex(slot["wrapped"]), bound)
        except InvalidTag:
            return None
        check(inside[32:] == digest, "format: it was changed")
        return inside[:32]

    def _read_index(self, key: str) -> None:
        """Take in where chunks lie."""
        data = self.payload(key, "index")
        (count,) = struct.unpack_from("<I", data)
        table = [data[at : at + 24] for at in range(4, 4 + 24 * count, 24)]
        at = 4 + 24 * count
        (entries,) = struct.unpack_from("<I", data, at)
        end = at + 4 + entries * ENTRY.size
        crcs = struct.unpack_from(f"<{count}I", data, end) if len(data) > end else [None] * count
        check(len(data) in (end, end + 4 * count), f"{key}: {len(data)} bytes")
        order = [entry[:8] for entry in cut(data[at + 4 : end], ENTRY.size)]
        check(order == sorted(order), f"{key}: its entries are in no order")
        for row, crc in zip(table, crcs, strict=True):
            self.packs[row[:16]] = Pack(int.from_bytes(row[16:23], "little"), row[23], crc)
        for name, pack, offset, stored, raw in ENTRY.iter_unpack(data[at + 4 : end]):
            self.places.setdefault(name, []).append(Place(table[pack][:16], offset, stored, raw))

    def _read_record(self, name: bytes, place: Place) -> bytes:
        """Return the chunk of a record, after its pack as a whole was checked."""
        pack, what = self.packs[place.pack], f"chunk {name.hex()} in pack {place.pack.hex()}"
        if place.pack not in self.sound:
            self._check_pack(place.pack, pack)
            self.sound.add(place.pack)
        with self._path(place.pack).open("rb") as file:
            file.seek(place.offset)
            header, sealed = file.read(RECORD), file.read(place.stored)
        found, number, stored, raw, codec = struct.unpack("<32sIIIB3x", header)
        check((found, stored, raw) == (name, place.stored, place.raw), f"{what}: not what the index says")
        check(codec in (0, 1) and header[45:] == bytes(3), f"{what}: unknown codec")
        own, bound = self._pack_key(place.pack, pack.epoch), self._binding("pack", place.pack)
        data = opened(own, number.to_bytes(12, "big"), sealed, bound + header, what)
        data = unpacked(data) if codec else data
        check(len(data) == raw, f"{what}: {len(data)} bytes, not {raw}")
        hashes = (blake3(data, key=self._key(epoch, "chunk")).digest() for epoch in range(len(self.masters)))
        check(name in hashes, f"{what}: it hashes to something else")
        return data

    def _check_pack(self, name: bytes, pack: Pack) -> None:
        """Compare a pack with what the index says, and its footer with its records."""
        data, what = self._path(name).read_bytes(), f"pack {name.hex()}"
        check(len(data) == pack.size, f"{what}: {len(data)} bytes, not {pack.size}")
        check(pack.crc in (None, zlib.crc32(data)), f"{what}: another checksum")
        check(data[:HEAD] == b"VMKPACK\x01" + name + bytes([pack.epoch]) + bytes(7), f"{what}: wrong head")
        length, count, magic = struct.unpack("<II8s", data[-TAIL:])
        check(magic == b"VMKFOOT\x01", f"{what}: its end is wrong")
        own, bound = self._pack_key(name, pack.epoch), self._binding("pack", name)
        sealed = data[-TAIL - length : -TAIL]
        footer = unpacked(opened(own, (2**32 - 1).to_bytes(12, "big"), sealed, bound + b"footer", what))
        check(len(footer) == count * ENTRY.size, f"{what}: its footer has another number of entries")
        at = HEAD
        for number, (chunk, zero, offset, stored, raw) in enumerate(ENTRY.iter_unpack(footer)):
            header = struct.pack("<32sIII", chunk, number, stored, raw)
            there = data[at : at + len(header)] == header
            check(there and (zero, offset) == (0, at), f"{what}: record {number} is wrong")
            at += RECORD + stored
        check(at == len(data) - TAIL - length, f"{what}: more than records before its footer")

    def _path(self, pack: bytes) -> Path:
        return self.folder / "packs" / pack.hex()[:2] / pack.hex()

    def _key(self, epoch: int, purpose: str) -> bytes:
        check(epoch < len(self.masters), f"there is no data epoch {epoch + 1}")
        return derive(self.masters[epoch], None, purpose)

    def _pack_key(self, name: bytes, epoch: int) -> bytes:
        return derive(self._key(epoch, "pack"), name, "pack")

    def _binding(self, kind: str, name: bytes) -> bytes:
        return b"vmkeep/1/" + self.id + kind.encode() + b"\0" + name


def secret_of(content: bytes) -> tuple[bytes, bool]:
    """Return the key or passphrase that a file holds, and whether it is a passphrase."""
    try:
        text = content.decode().strip("\r\n")
    except UnicodeDecodeError:
        return content, False
    if text.startswith("vmkeep-key-1:"):
        return bytes.fromhex(text.removeprefix("vmkeep-key-1:")), False
    return text.encode(), True


def derive(secret: bytes, salt: bytes | None, purpose: str) -> bytes:
    """Derive a key."""
    return HKDF(SHA256(), 32, salt, b"vmkeep/1/" + purpose.encode()).derive(secret)


def opened(key: bytes, nonce: bytes, sealed: bytes, bound: bytes, what: str) -> bytes:
    """Decrypt, and check that nothing was changed."""
    try:
        return AESGCM(key).decrypt(nonce, sealed, bound)
    except InvalidTag as error:
        raise DamagedError(f"{what}: damaged") from error


def unpacked(frame: bytes) -> bytes:
    """Return what a zstd frame holds; its header may not say how much that is."""
    return zstandard.ZstdDecompressor().decompressobj().decompress(frame)


def checked(path: Path) -> dict[str, Any] | None:
    """Return a plain record of `keys/`, or `None` if it is damaged."""
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        wanted = record.pop("check")
    except (ValueError, KeyError):
        return None
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return record if blake3(text.encode()).hexdigest(16) == wanted else None


def cut(data: bytes, size: int) -> list[bytes]:
    """Cut bytes into parts of one size."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def check(holds: object, otherwise: str) -> None:
    """Raise if something does not hold."""
    if not holds:
        raise DamagedError(otherwise)
