"""Copies of a repository: made by a run, and restored from when the repository is away."""

import shutil

import pytest

from vmkeep import fleet as fleets
from vmkeep.errors import InputError, IntegrityError
from vmkeep.operations import repositories
from vmkeep.operations.places import chosen, distance
from vmkeep.operations.repair import mend
from vmkeep.repository import Repository, generate_key_file
from vmkeep.testing.site import FLEET, Site

pytestmark = pytest.mark.integration

COPIES = FLEET.replace(
    "key: {file: ./key}",
    """key: {file: ./key}, copies: {
  nas: {store: ./nas, key: {file: ./nas.key}}, offsite: {store: ./offsite, key: {file: ./key}, last: 1}}""",
)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    generate_key_file(tmp_path / "nas.key")
    made = Site(tmp_path, text=COPIES)
    for name in ("nas", "offsite"):
        there = made.file.at(name)
        Repository.init(repositories.store_of(there), repositories.secret_of(there)).close()
    return made


def originals(site, name):
    with repositories.open_repository(site.file.at(name)) as repository:
        return [(point.vm, point.copy_of) for point in repository.points()]


def saved_twice(site):
    site.run("backup")
    site.write("db1", seed="second")
    site.run("backup")


def test_a_copy_gets_what_it_lacks_and_no_more(site):
    saved_twice(site)
    ours = sorted((point.vm, point.session) for vm in ("db1", "app1") for point in site.points(vm))

    first = site.run("copy")
    again = site.run("copy")

    assert (first.exit_code, again.exit_code) == (0, 0)
    assert sorted(originals(site, "nas")) == ours
    assert sorted(originals(site, "offsite")) == sorted(
        (vm, site.points(vm)[-1].session) for vm, _ in ours[::2]
    )
    assert {report.text for report in again.steps.values()} == {"nothing new"}


def test_a_restore_works_from_the_copy_when_the_repository_is_gone(site):
    saved_twice(site)
    site.run("copy")
    before = [site.digest("db1"), site.digest("db1", "data"), site.digest("app1")]
    shutil.rmtree(site.folder / "repository")
    shutil.rmtree(site.folder / "images")

    report = site.run("restore")

    assert report.exit_code == 0
    assert "(from copy nas)" in report.steps["configure db1"].text
    assert [site.digest("db1"), site.digest("db1", "data"), site.digest("app1")] == before


def test_the_copy_with_the_newest_state_is_taken(site):
    site.run("backup")
    site.run("copy", copies=["nas"])
    site.write("db1", seed="second")
    site.run("backup")

    behind = chosen(site.file, site.request("restore", overwrite=True)).repository
    site.run("copy", copies=["nas"])
    shutil.rmtree(site.folder / "repository" / "points")

    assert behind == "primary"
    assert chosen(site.file, site.request("restore", overwrite=True)).repository == "nas"


def test_the_id_of_an_original_finds_its_copy(site):
    saved_twice(site)
    site.run("copy")
    old = site.points("db1")[0]
    shutil.rmtree(site.folder / "repository")

    report = site.run("restore", targets=["db1"], points={"db1": old.session}, overwrite=True)

    assert report.exit_code == 0
    assert old.taken in report.steps["configure db1"].text


def test_a_damaged_point_does_not_keep_the_others_from_being_copied(site):
    site.run("backup")
    (point,) = site.points("app1")
    with repositories.open_repository(site.file) as repository:
        leaf = point.components["os"].disks["root"].leaves[0]
        place = repository.trees.chunks.locate(leaf)
        pack = site.folder / "repository" / f"packs/{place.pack.name.hex()[:2]}/{place.pack.name.hex()}"
    data = bytearray(pack.read_bytes())
    data[place.offset + 60] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)

    report = site.run("copy", copies=["nas"])

    assert report.exit_code == 4
    assert [vm for vm, _ in originals(site, "nas")] == ["db1"]


def test_a_point_whose_object_is_damaged_does_not_keep_the_others_from_being_copied(site):
    saved_twice(site)
    old, new = site.points("db1")
    site.spoil_point("db1", old.session)

    reports = [site.run("copy", copies=[name]) for name in ("nas", "offsite")]

    # Only the newest is asked for offsite, and that is sound.
    assert [report.exit_code for report in reports] == [4, 0]
    assert f"1 of 2 recovery point(s) could not be copied to nas: {old.session}" in str(
        reports[0].errors["copy db1 to nas"]
    )
    for name in ("nas", "offsite"):
        assert [session for vm, session in originals(site, name) if vm == "db1"] == [new.session]


def test_a_copy_that_is_damaged_is_made_again(site):
    site.run("backup")
    site.run("copy", copies=["nas"])
    (path,) = (site.folder / "nas/points/db1").iterdir()
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    report = site.run("copy", copies=["nas"])

    assert report.exit_code == 0
    with repositories.open_repository(site.file.at("nas")) as repository:
        assert next(repository.newest_first("db1")).copy_of == site.points("db1")[0].session


def test_damage_never_lets_an_older_state_be_restored_unasked(site):
    site.run("backup")
    site.run("copy")
    site.write("db1", seed="second")
    site.run("backup")
    old, new = site.points("db1")
    site.spoil_point("db1", new.session)
    request = site.request("restore", targets=["db1"], overwrite=True)

    with pytest.raises(IntegrityError, match=f"{new.session} is damaged.*--point db1=20"):
        chosen(site.file, request)

    named = request.model_copy(update={"points": {"db1": old.session}})
    assert chosen(site.file, named).repository == "primary"


def test_a_restore_from_a_copy_says_why_the_repository_was_not_used(site):
    site.run("backup")
    site.run("copy")
    (site.folder / "key").rename(site.folder / "lost.key")

    report = site.run("restore", targets=["db1"], overwrite=True)

    assert report.exit_code == 0
    assert report.trouble is not None
    assert "restored from copy nas, which may be behind: primary could not be used: cannot read the key" in (
        report.trouble
    )


def test_a_point_that_is_damaged_is_restored_from_a_copy(site):
    saved_twice(site)
    site.run("copy")
    before = site.digest("db1")
    new = site.points("db1")[-1]
    site.spoil_point("db1", new.session)
    site.write("db1", seed="third")

    report = site.run("restore", targets=["db1"], overwrite=True)

    assert report.exit_code == 0
    assert new.taken in report.steps["configure db1"].text
    assert site.digest("db1") == before


def test_what_is_damaged_is_repaired_from_a_copy(site):
    saved_twice(site)
    site.run("copy", copies=["nas"])
    before = [site.digest("db1"), site.digest("db1", "data"), site.digest("app1")]
    packs = [path for path in (site.folder / "repository" / "packs").rglob("*") if path.is_file()]
    for pack in packs:
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(data)

    outcome = mend(site.file)

    assert len(outcome.found.broken) == len(packs)
    assert outcome.left == ()
    assert all(line.endswith("from nas") for line in outcome.repaired)
    report = site.run("restore", overwrite=True, repository="primary")
    assert report.exit_code == 0
    assert [site.digest("db1"), site.digest("db1", "data"), site.digest("app1")] == before


def test_a_copy_that_is_not_declared_is_refused(site):
    with pytest.raises(InputError, match="did you mean 'nas'"):
        site.run("copy", copies=["nass"])


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("{store: /srv/b, key: {file: k}}", 0),
        ("{store: 's3://b', key: {file: k}, s3: {endpoint_url: 'http://127.0.0.1:1'}}", 1),
        ("{store: 's3://b', key: {file: k}, s3: {endpoint_url: 'http://10.1.2.3:1'}}", 1),
        ("{store: 's3://b', key: {file: k}, s3: {endpoint_url: 'https://s3.example'}}", 2),
        ("{store: 's3://b', key: {file: k}}", 2),
    ],
)
def test_what_is_near_is_known_by_its_address(place, expected):
    text = FLEET.replace("{store: ./repository, key: {file: ./key}}", place)

    assert distance(fleets.loads(text).fleet.repository) == expected
