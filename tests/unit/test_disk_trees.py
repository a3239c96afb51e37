"""Paths in a guest's tree of files, its fstab, and the catalogue of a saved tree."""

# ruff: noqa: PTH211  (os.symlink has the order of ln -s)

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmkeep.components import catalogue
from vmkeep.components.catalogue import KINDS, Entry
from vmkeep.components.tree_restore import Choice, Content, restore_tree
from vmkeep.components.tree_save import save_tree
from vmkeep.disks import fstab
from vmkeep.disks.file_tree import FileTree
from vmkeep.disks.partitions import Partition
from vmkeep.disks.superblocks import FileSystem
from vmkeep.errors import AccessError, IntegrityError, NotFoundError, SourceError
from vmkeep.testing.chunks import MemoryChunks
from vmkeep.units import KiB, MiB


@pytest.fixture
def root(tmp_path):
    (tmp_path / "secret").write_text("of the host")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("of the guest")
    return root


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd", "etc/passwd", "/../etc/./passwd"])
def test_a_link_leads_to_the_guests_own_file(root, target):
    os.symlink(target, root / "link")

    assert FileTree(root).read(b"/link", most=100) == b"of the guest"


@pytest.mark.parametrize("target", ["../secret", "/secret", "../../secret"])
def test_a_link_never_leads_out(root, target):
    os.symlink(target, root / "link")

    assert FileTree(root).read(b"/link", most=100) is None


def test_a_path_through_a_linked_folder_is_followed_inside(root):
    os.symlink("/etc", root / "conf")

    found = FileTree(root).resolve(b"/conf/passwd")
    assert found.names == (b"etc", b"passwd")
    assert found.links == ((b"conf",),)


def test_links_in_a_circle_are_refused(root):
    os.symlink("b", root / "a")
    os.symlink("a", root / "b")

    with pytest.raises(SourceError, match="too many symbolic links"):
        FileTree(root).resolve(b"/a")


def test_a_folder_is_never_opened_through_a_link(root):
    os.symlink("etc", root / "conf")

    with pytest.raises(NotFoundError, match="/conf"):
        FileTree(root).open_folder((b"conf",))


def test_a_mount_hides_what_is_below_it(root, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/passwd").write_text("of the data disk")

    tree = FileTree(root, mounts={(b"etc",): tmp_path / "data"})
    assert tree.read(b"/etc/passwd", most=100) == b"of the data disk"


def test_a_mount_that_cannot_be_opened_says_why_when_it_is_needed(root):
    tree = FileTree(root, blocked={(b"etc",): SourceError("its disk is missing")})

    with pytest.raises(SourceError, match="its disk is missing"):
        tree.resolve(b"/etc/passwd")


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(root):
    os.mkfifo(root / "pipe")

    assert FileTree(root).read(b"/pipe", most=1) is None


DISKS = (
    (Partition(1, 0, 1, filesystem=FileSystem("ext4", "AB-1", "root"), uuid="p-1", name="one"),),
    (Partition(0, 0, 1, filesystem=FileSystem("ext4", "cd-2", "data")),),
)


@pytest.mark.parametrize(
    ("source", "disk"),
    [
        ("UUID=ab-1", 0), ('UUID="cd-2"', 1), ("LABEL=data", 1), ("PARTUUID=P-1", 0), ("PARTLABEL=one", 0),
        ("/dev/sda1", 0), ("/dev/vda1", 0), ("/dev/xvdb", 1), ("/dev/nvme0n1p1", 0),
    ],
)  # fmt: skip
def test_a_source_of_fstab_is_found(source, disk):
    assert fstab.find(source, DISKS)[0] == disk


@pytest.mark.parametrize("source", ["UUID=", "LABEL=other", "/dev/sda2", "/dev/mapper/vg-root", "LABEL=DATA"])
def test_a_source_that_is_on_no_disk_is_not_found(source):
    assert fstab.find(source, DISKS) is None


def test_only_file_systems_of_disks_are_mounted_the_outer_ones_first():
    table = b"""# comment
UUID=1 /srv/data ext4 defaults 0 2
tmpfs /tmp tmpfs defaults 0 0
UUID=2 none swap sw 0 0
server:/export /mnt nfs defaults 0 0
/dev/sr0 /media/cdrom udf,iso9660 user,noauto 0 0
LABEL=with\\040blank /srv ext4 defaults 0 2
broken
UUID=3 /up/../../out ext4 defaults 0 0
"""

    assert [(mount.source, mount.point) for mount in fstab.parse(table)] == [
        ("LABEL=with blank", (b"srv",)), ("UUID=1", (b"srv", b"data")),
    ]  # fmt: skip


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_any_fstab_is_read(table):
    assert all(b".." not in mount.point for mount in fstab.parse(table))


NAMES = st.binary(min_size=1, max_size=20).filter(lambda n: not {0, 47} & set(n) and n not in {b".", b".."})
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(tuple)
NUMBERS = st.integers(0, 2**40)
ENTRIES = st.builds(
    Entry,
    path=PATHS,
    kind=st.sampled_from([kind for kind in KINDS if kind == "file"]),
    mode=st.integers(0, 0o7777),
    uid=NUMBERS,
    gid=NUMBERS,
    mtime_ns=st.integers(-(2**60), 2**62),
    size=NUMBERS,
    extents=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=3).map(tuple),
    same_as=st.none() | PATHS,
    xattrs=st.dictionaries(NAMES, st.binary(max_size=40), max_size=3),
    passage=st.booleans(),
)


@settings(max_examples=100)
@given(st.lists(ENTRIES, max_size=5), st.integers(1, 50))
def test_a_catalogue_is_read_back_from_blocks_of_any_size(entries, step):
    data = b"".join(entry.to_line() for entry in entries)
    blocks = [data[start : start + step] for start in range(0, len(data), step)]

    assert list(catalogue.read(blocks)) == entries


@pytest.mark.parametrize(
    "line",
    [
        b"{}", b"no json", b"[]", b'{"path":"a/../b","kind":"file","mode":1,"uid":0,"gid":0,"mtime":0}',
        b'{"path":"/etc","kind":"file","mode":1,"uid":0,"gid":0,"mtime":0}',
        b'{"path":"a","kind":"door","mode":1,"uid":0,"gid":0,"mtime":0}',
        b'{"path":"a","kind":"file","mode":1,"uid":0,"gid":0,"mtime":0,"same_as":"../a"}',
    ],
)  # fmt: skip
def test_a_line_that_could_do_harm_is_refused(line):
    with pytest.raises(IntegrityError, match="do not restore"):
        catalogue.parse(line)


def test_a_catalogue_that_was_cut_off_is_refused():
    with pytest.raises(IntegrityError, match="middle of a line"):
        list(catalogue.read([b'{"path":']))


@settings(max_examples=50)
@given(
    st.binary(min_size=1, max_size=200),
    st.lists(st.tuples(st.integers(0, 199), st.integers(0, 50)), max_size=6),
)
def test_ranges_of_content_are_read_in_any_order(data, ranges):
    chunks = MemoryChunks()
    ref, _ = chunks.save_stream([data[:7], data[7:50], data[50:]])
    content = Content(chunks, ref)

    for start, length in ranges:
        wanted = data[start : start + length]
        assert b"".join(content.read(start, len(wanted))) == wanted


def test_content_that_ends_too_early_is_damage():
    chunks = MemoryChunks()
    ref, _ = chunks.save_stream([b"short"])

    with pytest.raises(IntegrityError, match="ends at byte 5"):
        list(Content(chunks, ref).read(0, 10))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3 * MiB), st.integers(1, 9000)), max_size=6))
def test_the_extents_of_a_sparse_file_give_its_bytes_back(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("tree")
    with (folder / "sparse").open("wb") as file:
        file.truncate(4 * MiB)
        for offset, length in parts:
            file.seek(offset)
            file.write(b"\xaa" * length)
    chunks = MemoryChunks()
    saved = save_tree(FileTree(folder), [b"/"], writer=chunks, scratch=folder.parent, what="test")

    (entry,) = catalogue.read(chunks.read_stream(saved.catalogue))
    content = b"".join(chunks.read_stream(saved.content))
    restored = bytearray(entry.size)
    for offset, start, length in entry.extents:
        restored[offset : offset + length] = content[start : start + length]
    assert bytes(restored) == (folder / "sparse").read_bytes()
    assert len(content) <= sum(length + 8 * KiB for _, length in parts)


def test_overlapping_paths_are_saved_once(root):
    (root / "etc/sub").mkdir()
    (root / "etc/sub/file").write_text("once")
    chunks = MemoryChunks()

    for paths in ([b"/etc/sub", b"/etc"], [b"/etc", b"/etc/sub"]):
        saved = save_tree(FileTree(root), paths, writer=chunks, scratch=root, what="test")
        found = [
            entry.path for entry in catalogue.read(chunks.read_stream(saved.catalogue)) if not entry.passage
        ]
        assert sorted(found) == [(b"etc",), (b"etc", b"passwd"), (b"etc", b"sub"), (b"etc", b"sub", b"file")]


@pytest.mark.parametrize(
    ("rule", "left"),
    [("*.tmp", [b"keep", b"sub"]), ("/sub/b.tmp", [b"a.tmp", b"keep", b"sub"]), ("sub", [b"a.tmp", b"keep"])],
)
def test_excluded_names_and_paths_are_left_out(root, rule, left):
    for name in ("a.tmp", "keep", "sub/b.tmp"):
        (root / "srv" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "srv" / name).touch()
    chunks = MemoryChunks()

    saved = save_tree(FileTree(root), [b"/srv"], exclude=[rule], writer=chunks, scratch=root, what="test")
    found = [entry.path for entry in catalogue.read(chunks.read_stream(saved.catalogue))]
    assert [path[1] for path in found if len(path) == 2] == left
    assert (b"srv", b"sub", b"b.tmp") not in found


def test_a_choice_takes_what_is_below_and_passes_what_leads_there():
    def entry(path):
        return Entry(tuple(path.encode().split(b"/")), "folder", 0, 0, 0, 0)

    choice = Choice(paths=((b"a", b"b"),))
    assert [choice.takes(entry(path)) for path in ("a", "a/b", "a/b/c", "a/bc")] == [False, True, True, False]
    assert [choice.passes(entry(path)) for path in ("a", "a/b", "x")] == [True, False, False]


def restore_as_user(monkeypatch, folder, *, in_place):
    """Restore one file of root's, as somebody else."""
    chunks = MemoryChunks()
    (folder / "file").touch()
    saved = save_tree(FileTree(folder), [b"/file"], writer=chunks, scratch=folder, what="test")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1000)
    restore_tree(
        chunks, content=saved.content, catalogue_ref=saved.catalogue, into=FileTree(folder),
        choice=Choice(in_place=in_place), what="test",
    )  # fmt: skip


def test_other_owners_need_root_in_a_folder_and_the_line_says_what_does_not(tmp_path, monkeypatch):
    with pytest.raises(AccessError, match=r"1 files of other owners needs root; .*VM's image.*tar archive"):
        restore_as_user(monkeypatch, tmp_path, in_place=False)


def test_other_owners_need_no_root_in_an_image(tmp_path, monkeypatch):
    restore_as_user(monkeypatch, tmp_path, in_place=True)

    assert (tmp_path / "file").exists()
