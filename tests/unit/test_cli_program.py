"""The program itself: help, version, and what it does not import."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from vmkeep import errors
from vmkeep.cli import main

COMMANDS = (
    "init", "validate", "schema", "plan", "graph", "configure", "backup", "restore", "stream", "verify",
    "points", "show", "doctor", "import", "up", "down", "deploy",
)  # fmt: skip


def test_help_imports_nothing_heavy():
    heavy = "('prefect', 'boto3', 'numpy', 'networkx', 'pydantic', 'vmkeep.fleet')"
    program = (
        "from vmkeep.cli import main; import sys; main(['--help']); "
        f"print([one for one in {heavy} if one in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"vmkeep {command}" in capsys.readouterr().out.partition("Examples:")[2]


def test_help_names_every_command_and_every_exit_code(capsys):
    assert main(["--help"]) == 0

    out = capsys.readouterr().out
    codes = {one.exit_code for one in vars(errors).values() if hasattr(one, "exit_code")}
    assert all(re.search(rf"│ {command} ", out) for command in COMMANDS)
    assert all(re.search(rf"\b{code} [a-z]", out.partition("Exit codes:")[2]) for code in codes | {0, 130})


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vmkeep {metadata.version('vmkeep')}\n"


def test_the_entry_points_are_those_that_are_tested():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    classic = ("vmcreate", "vconfig", "vdisk", "vcpu", "vmbackup", "vmrestore")

    assert project["project"]["scripts"] == {
        "vmkeep": "vmkeep.cli:main",
        **{name: f"vmkeep.cli.classic:{name}" for name in classic},
    }


def test_an_output_that_is_full_is_one_clear_line():
    program = "from vmkeep.cli import main; import sys; sys.exit(main(['schema']))"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    assert done.stderr.startswith("vmkeep: No space left on device")
    assert "Traceback" not in done.stderr
    assert done.returncode != 0
