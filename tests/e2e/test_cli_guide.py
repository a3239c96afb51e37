"""Every shell example of the guide, in its order, as it stands."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from vmkeep.testing.guests import Volume, build_disk, fill_with_oddities
from vmkeep.units import MiB

pytestmark = pytest.mark.e2e

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
# Prefect has its own tests, and would take seconds for each command.
WITHOUT_PREFECT = """\
vmkeep() {
    case $1 in
        configure | backup | restore | verify | copy | prune) command vmkeep "$@" --direct ;;
        *) command vmkeep "$@" ;;
    esac
}
"""


def blocks(language):
    pattern = rf"^( *)```{language}\n(.*?)^ *```$"
    return [text for _, text in re.findall(pattern, GUIDE, re.MULTILINE | re.DOTALL)]


@pytest.fixture
def folder(tmp_path):
    """A fleet as the guide describes it: its fleet file, and VMs with files and a database."""
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "fstab").touch()
    fill_with_oddities(tree / "srv" / "exports")
    with closing(sqlite3.connect(tree / "srv" / "orders.db")) as database:
        database.execute("create table orders (id integer)")
    folder = tmp_path / "shop"
    for vm, form in (("db1", "qcow2"), ("app1", "raw")):
        (folder / "images" / vm).mkdir(parents=True)
        build_disk(folder / "images" / vm / f"root.{form}", [Volume(tree, size=32 * MiB)], format=form)
    (fleet,) = (text for text in blocks("yaml") if text.startswith("version: 1"))  # others are parts of one
    (folder / "fleet.yaml").write_text(fleet)
    return folder


def test_every_example_runs_as_it_stands(folder, tmp_path):
    examples = blocks("sh")
    script = "\n".join(["set -euo pipefail", WITHOUT_PREFECT, "set -x", *examples])
    home = Path(sys.executable).parent

    done = subprocess.run(
        [shutil.which("bash"), "-c", script],
        cwd=folder,
        env=os.environ | {"PATH": f"{home}:{os.environ['PATH']}", "VMKEEP_STATE": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "found/srv/exports/plain.txt").read_text() == "just text\n"
    assert "srv/exports/plain.txt" in (folder / "names.txt").read_text()
    assert len(examples) >= 10


def test_every_exit_code_is_in_the_guide():
    codes = re.findall(r"^\| (\d+) \|", GUIDE, re.MULTILINE)

    assert codes == ["0", "1", "2", "3", "4", "5", "6", "130"]
