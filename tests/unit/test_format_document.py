"""docs/format.md is enough to write another reader: `tests/golden/reader.py` is one."""

import ast
import importlib.util
import random
import re
import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vmkeep.repository import Repository, Secret
from vmkeep.repository.decision import Decision, decide
from vmkeep.repository.pins import new_reader
from vmkeep.repository.roles import ROLES
from vmkeep.stores import DirectoryStore
from vmkeep.testing.faults import Fault, FaultyStore, Killed, on
from vmkeep.testing.repositories import CHUNK, KEY, LEAF, backup, contents, save, small_repository
from vmkeep.testing.repositories import point as new_point
from vmkeep.testing.roles import RestrictedStore

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
PROGRAM = GOLDEN / "reader.py"
DOCUMENT = ROOT / "docs" / "format.md"
PASSPHRASE = b"a golden passphrase\n"
KEY_FILE = f"vmkeep-key-1:{KEY.data.hex()}\n".encode()
LATER = timedelta(days=30)


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reader = loaded(PROGRAM)
golden = loaded(Path(__file__).with_name("test_repository_golden.py"))


def read(point, opened):
    """Return what a point holds by name, as the other reader reads it."""
    disks = {name: b"".join(opened.disk(disk)) for (_, name), disk in point.disks.items()}
    return disks | {name: b"".join(opened.stream(stream)) for (_, name), stream in point.streams.items()}


def read_all(folder, secret=KEY_FILE):
    opened = reader.Reader(folder, secret)
    return [read(point, opened) for point in opened.points()]


def flipped(body, at):
    return body[:at] + bytes([body[at] ^ 1 << at % 8]) + body[at + 1 :]


def noise(seed, size):
    return random.Random(seed).randbytes(size)


# Holes as long as leaves, and an end that fills no chunk.
DISK = noise(1, 3 * LEAF * CHUNK) + bytes(2 * LEAF * CHUNK) + noise(2, 11 * CHUNK) + b"end"
FIRST = {"root": DISK, "data": b"abc" * 9000, "dump": noise(3, 50_000) + b"the same " * 9_000, "empty": b""}
SECOND = FIRST | {"root": noise(4, CHUNK) + DISK[CHUNK:], "dump": b"more" + FIRST["dump"]}


def saved(repository, spool, content, run):
    disks = {name: content[name] for name in ("root", "data")}
    return backup(repository, spool, disks, {name: content[name] for name in ("dump", "empty")}, run=run)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def repository(folder):
    return small_repository(DirectoryStore(folder))


@pytest.fixture
def points(repository, tmp_path):
    return [
        saved(repository, tmp_path / f"s{number}", content, f"run-{number}")
        for number, content in enumerate((FIRST, SECOND))
    ]


def again(repository):
    return Repository.open(repository.store, KEY)


def as_role(role, repository):
    return Repository.open(RestrictedStore(repository.store, ROLES[role]), KEY)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in GOLDEN.glob("*/format")))
def test_every_golden_repository_is_read_from_the_document_alone(name, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path / "store")
    ours = Repository.open(DirectoryStore(tmp_path / "store"), golden.SECRET)

    found = read_all(GOLDEN / name, PASSPHRASE)

    assert found == [golden.FIRST, golden.SECOND]
    assert found == [contents(ours, point) for point in ours.points("db1")]


def test_the_program_knows_nothing_of_vmkeep():
    tree = ast.parse(PROGRAM.read_text())
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    called = {
        node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "id")
    }
    top = {name.partition(".")[0] for name in names}

    assert top - sys.stdlib_module_names == {"blake3", "cryptography", "zstandard"}
    assert "importlib" not in top
    assert called.isdisjoint({"__import__", "exec", "eval"})


def test_trees_of_many_leaves_in_many_packs_are_read(repository, folder, tmp_path):
    longest = {
        **FIRST,
        "dump": noise(5, 1025 * repository.format.stream_most),
    }  # a leaf has 1024 chunks at most
    saved(repository, tmp_path / "s", longest, "run-1")

    opened = reader.Reader(folder, KEY_FILE)
    (point,) = opened.points()

    assert len(point.disks["filesystems.root", "root"].leaves) == 32 * 7
    assert len(point.streams["databases.dump", "dump"].leaves) >= 40 * 2
    assert len(opened.packs) > 60
    assert [read(point, opened)] == [longest]
    assert [contents(repository, each) for each in repository.points()] == [longest]


@pytest.mark.parametrize("secret", [b"\xff" * 32, b"in the safe", b"\r\nin the safe\r\n\n"])
def test_any_secret_opens_its_own_slot_and_a_wrong_one_none(secret, repository, folder):
    repository.access.add_slot("paper", Secret.passphrase("in the safe"))
    repository.access.add_slot("bytes", Secret.key(b"\xff" * 32))

    opened = reader.Reader(folder, secret)

    assert opened.masters == [*repository.keys.masters]
    with pytest.raises(reader.DamagedError, match="no slot"):
        reader.Reader(folder, b"in the safe, too")


@pytest.mark.parametrize("summed", [True, False], ids=["with checksums", "without"])
def test_a_flipped_bit_anywhere_in_a_pack_is_an_error(summed, repository, folder, tmp_path):
    backup(repository, tmp_path / "s", {"root": noise(5, 3 * CHUNK)}, {"dump": b"dump" * 900})
    opened = reader.Reader(folder, KEY_FILE)
    if not summed:
        opened.packs = {name: replace(said, crc=None) for name, said in opened.packs.items()}
    (point,) = opened.points()

    assert read(point, opened)["dump"] == b"dump" * 900
    for pack in folder.glob("packs/*/*"):
        body = pack.read_bytes()
        for at in [*range(90), *range(90, len(body) - 90, 191), *range(len(body) - 90, len(body))]:
            pack.write_bytes(flipped(body, at))
            opened.sound.clear()
            with pytest.raises(reader.DamagedError):
                read(point, opened)
        pack.write_bytes(body)


@pytest.mark.usefixtures("points")
@pytest.mark.parametrize("below", ["points", "index"])
def test_a_flipped_bit_anywhere_in_a_sealed_object_is_an_error(below, folder):
    path = next(path for path in (folder / below).rglob("*") if path.is_file())
    body = path.read_bytes()
    opened = reader.Reader(folder, KEY_FILE)
    kind = {"points": "decision", "index": "index"}[below]

    for at in [*range(40), *range(40, len(body), 7)]:
        path.write_bytes(flipped(body, at))
        with pytest.raises(reader.DamagedError):
            opened.payload(path.relative_to(folder).as_posix(), kind)


def test_a_chunk_that_is_not_what_its_id_says_is_an_error(repository, folder, tmp_path, monkeypatch):
    backup(repository, tmp_path / "s", {"root": noise(5, 3 * CHUNK)})
    opened = reader.Reader(folder, KEY_FILE)
    (point,) = opened.points()
    key_of = opened._key
    monkeypatch.setattr(
        opened, "_key", lambda epoch, use: bytes(32) if use == "chunk" else key_of(epoch, use)
    )

    with pytest.raises(reader.DamagedError, match="hashes to something else"):
        read(point, opened)


@pytest.mark.usefixtures("repository")
def test_a_format_object_that_was_changed_is_an_error(folder):
    text = (folder / "format").read_text()
    (folder / "format").write_text(text.replace('"leaf": 8', '"leaf": 9'))

    with pytest.raises(reader.DamagedError, match="it was changed"):
        reader.Reader(folder, KEY_FILE)


@pytest.mark.usefixtures("repository")
def test_a_feature_that_the_reader_does_not_know_is_refused(folder):
    text = (folder / "format").read_text()
    (folder / "format").write_text(text.replace('"read": []', '"read": ["shorter ids"]'))

    with pytest.raises(reader.DamagedError, match="does not know"):
        reader.Reader(folder, KEY_FILE)


def test_an_object_under_the_name_of_another_is_an_error(folder, points):
    first, second = sorted((folder / "points" / "db1").iterdir())
    second.write_bytes(first.read_bytes())
    packs = sorted(folder.glob("packs/*/*"))
    packs[0].write_bytes(packs[1].read_bytes())
    opened = reader.Reader(folder, KEY_FILE)

    assert len(points) == 2
    with pytest.raises(reader.DamagedError, match=second.name):
        opened.points()
    with pytest.raises(reader.DamagedError, match=packs[0].name):
        opened._check_pack(bytes.fromhex(packs[0].name), opened.packs[bytes.fromhex(packs[0].name)])


def test_a_damaged_chunk_is_read_from_another_pack_that_has_it(repository, folder, tmp_path):
    sessions = [repository.begin(vm=vm, run="run-1", spool=tmp_path / vm) for vm in ("db1", "db2")]
    for session in sessions:
        save(session, {"root": DISK})
        session.upload()
    for session, vm in zip(sessions, ("db1", "db2"), strict=True):
        with session:
            session.seal(new_point(session.recorded(), vm))
    found = reader.Reader(folder, KEY_FILE).places.values()
    for pack in {places[-1].pack for places in found}:
        path = folder / "packs" / pack.hex()[:2] / pack.hex()
        path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2))

    assert {len(places) for places in found} == {2}
    assert read_all(folder) == [{"root": DISK}] * 2


def test_what_is_forgotten_or_void_is_no_point_and_what_is_held_is(repository, folder, points, tmp_path):
    hold = repository.hold(points[1], name="case 7", reason="the auditors")
    with repository.begin(vm="db2", run="run-1", spool=tmp_path / "v") as session:
        key = f"points/db2/{session.id}"
    decide(repository.store, repository.keys, key, Decision("n", None, "it died"))
    repository.forget(points[0], "retention")

    opened = reader.Reader(folder, KEY_FILE)
    (left,) = opened.points()

    assert hold.session == left.session == points[1].session
    assert "void" in opened.json(key, "decision")


def test_a_listing_tells_what_counts_by_its_size(lived):
    opened = reader.Reader(lived, KEY_FILE)
    sizes = {"void": [], "point": [], "repacked": [], "taken": [], "tombstone": []}
    for folder in ("points", "repacked"):
        for key in opened.keys(folder):
            (what,) = opened.json(key, "decision").keys() - {"nonce"}
            sizes[what].append((lived / key).stat().st_size)
    for key in opened.keys("forgotten"):
        what = "tombstone" if opened.json(key, "forgotten") else "taken"
        sizes[what].append((lived / key).stat().st_size)

    assert all(sizes.values())
    assert {*sizes["void"], *sizes["taken"]} == {256}
    assert min(sizes["point"] + sizes["repacked"] + sizes["tombstone"]) >= 512


def test_what_a_collection_and_a_new_epoch_leave_is_read(repository, folder, points):
    repository.forget(points[0], "retention")
    again(repository).access.begin_epoch(KEY)
    done = again(repository).collect(repack_below=0.99, renew=True)

    assert done.packs
    assert done.repacked.packs
    assert read_all(folder) == [SECOND]


def test_the_keys_of_all_epochs_are_found(repository, folder, points, tmp_path):
    for number in (2, 3):
        again(repository).access.begin_epoch(KEY)
        saved(
            again(repository), tmp_path / f"e{number}", {**FIRST, "data": b"%d" % number}, f"epoch-{number}"
        )

    opened = reader.Reader(folder, KEY_FILE)

    assert opened.masters == [*again(repository).keys.masters]
    assert len(opened.masters) == 3
    assert [read(point, opened)["data"] for point in opened.points()][len(points) :] == [b"2", b"3"]


@pytest.mark.parametrize("loss", ["gone", "damaged"])
def test_the_copy_of_an_epochs_record_in_a_slot_takes_its_place(loss, repository, folder, points):
    again(repository).access.begin_epoch(KEY)
    record = folder / "keys" / "epochs" / "00000002"
    if loss == "gone":
        record.unlink()
    else:
        record.write_bytes(record.read_bytes().replace(b"begun", b"began"))

    assert len(points) == 2
    assert read_all(folder) == [FIRST, SECOND]


def documented():
    """Return the kinds in the document's table of objects, by a pattern of their keys."""
    rows = re.findall(r"^\| (`.*?`) \|.*\| ?`?([a-z]*)`? \|$", DOCUMENT.read_text(), re.MULTILINE)
    session = r"\d{8}T\d{9}Z-[0-9a-f]{12}"
    shapes = {
        "session": session,
        "id": rf"([0-9a-f]{{32}}|{session})",
        "pack": "[0-9a-f]{32}",
        "n": r"[^/.]+",
    }
    return {
        re.sub(r"<(\w+)>", lambda part: shapes.get(part[1], "[^/.]+"), re.escape(key)): kind
        for keys, kind in rows
        for key in re.findall(r"`([^`]+)`", keys)
    }


@pytest.fixture
def lived(repository, folder, points, tmp_path):
    """A repository to which all has happened of which objects tell."""
    old, kept = points
    restorer = as_role("restorer", repository)
    repository.put_run("run-1", {"points": 1})
    repository.put_drill("drill-1", {"verdict": "passed"})
    lost = backup(as_role("writer", repository), tmp_path / "lost", {"root": noise(6, CHUNK)}, vm="db2")
    repository.forget(lost, "retention")
    again(repository).collect()
    repository.release(repository.hold(old, name="case 7", reason="the auditors"), "closed")
    repository.forget(old, "retention")
    again(repository).scrub()
    again(repository).check_packs()
    restorer.pin({kept.vm: kept.session}, new_reader())
    slot = folder / "keys" / "default"
    first_slot = slot.read_bytes()
    again(repository).access.begin_epoch(KEY)
    slot.write_bytes(first_slot)  # as if it could not be removed
    again(repository).collect(now=datetime.now(UTC) + LATER, repack_below=0.99)
    visitor = new_reader()
    restorer.pin({kept.vm: kept.session}, visitor)
    restorer.renew(visitor)
    restorer.unpin(visitor)
    with again(repository).begin(vm="db4", run="run-1", spool=tmp_path / "dead") as dead:
        pass
    decide(repository.store, repository.keys, f"points/db4/{dead.id}", Decision("n", None, "it died"))
    killed = FaultyStore(repository.store, on("put", "points/", Fault.KILLED))
    with pytest.raises(Killed):
        backup(Repository.open(killed, KEY), tmp_path / "killed", {"a": noise(7, CHUNK)}, vm="db3")
    backup(again(repository), tmp_path / "killed", {"a": noise(7, CHUNK), "b": noise(8, CHUNK)}, vm="db3")
    pack = max(folder.glob("packs/*/*"), key=lambda path: path.stat().st_size)
    pack.write_bytes(flipped(pack.read_bytes(), pack.stat().st_size // 2))
    again(repository).scrub()
    return folder


def test_the_document_names_every_object_with_its_kind(lived):
    opened, kinds, seen = reader.Reader(lived, KEY_FILE), documented(), set()
    for key in opened.keys("."):
        (pattern,) = [each for each in kinds if re.fullmatch(each, key)]
        if kinds[pattern]:
            assert opened.payload(key, kinds[pattern])
        seen.add(pattern)

    assert seen == {*kinds}


def fields(record):
    """Return the names of a record's fields; not those below names that people gave."""
    point = record.get("point", {})
    components = [*point.get("components", {}).values()]
    things = [thing for each in components for kind in ("disks", "streams") for thing in each[kind].values()]
    parts = [record, point, *components, *things, *(each["stats"] for each in components)]
    return {name for part in parts for name in part}


def test_the_document_names_every_field(lived):
    opened, kinds, text = reader.Reader(lived, KEY_FILE), documented(), DOCUMENT.read_text()
    theirs = ("", "run", "drill", "index", "verified")  # what is no JSON, or not the repository's own
    records = [reader.checked(lived / key) | {"check": ""} for key in opened.keys("keys")]
    for key in opened.keys("."):
        (kind,) = [kind for pattern, kind in kinds.items() if re.fullmatch(pattern, key)]
        if kind not in theirs:
            records.append(opened.json(key, kind))
    names = set().union(*map(fields, records))

    assert {name for name in names if f'"{name}"' not in text and f"`{name}`" not in text} == set()
    assert len(names) > 40
