"""`vmkeep repair` where there is no copy: the disks of the VMs are what is left."""

import json

import pytest

from vmkeep.cli import main

pytestmark = pytest.mark.integration


def damage(site):
    """Flip a bit in the middle of every pack."""
    packs = [path for path in (site.folder / "repository" / "packs").rglob("*") if path.is_file()]
    for pack in packs:
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(data)
    return len(packs)


@pytest.fixture
def repair(site, capfd):
    def run():
        capfd.readouterr()
        code = main(["repair", "-f", str(site.path), "--json"])
        return code, json.loads(capfd.readouterr().out)

    return run


def test_what_is_damaged_is_read_anew_from_the_disks(site, repair):
    site.run("backup")
    before = [site.digest("db1"), site.digest("db1", "data"), site.digest("app1")]
    packs = damage(site)

    code, said = repair()

    assert (code, said["left"], packs > 0) == (0, [], True)
    assert all(line.endswith("from its disk") for line in said["repaired"])
    for vm in ("db1", "app1"):
        site.write(vm, seed="lost")
    assert site.run("restore", overwrite=True).exit_code == 0
    assert [site.digest("db1"), site.digest("db1", "data"), site.digest("app1")] == before


def test_a_disk_that_changed_helps_only_as_far_as_it_did_not(site, repair):
    site.run("backup")
    before = site.digest("app1")
    damage(site)
    for disk in ("root", "data"):
        site.write("db1", disk, seed="changed")

    code, said = repair()

    assert code == 4
    assert all("db1/" in line for line in said["left"])
    assert any("app1/os" in line for line in said["repaired"])
    site.write("app1", seed="lost")
    assert site.run("restore", targets=["app1"], overwrite=True).exit_code == 0
    assert site.digest("app1") == before


def test_reading_the_disks_changes_nothing_in_them(site, repair):
    site.run("backup")
    image = site.image("db1")
    before = image.stat().st_mtime_ns, site.digest("db1")
    damage(site)

    repair()

    assert (image.stat().st_mtime_ns, site.digest("db1")) == before
