"""What ships beside the code is true: examples, the JSON Schema, the reference, the template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmkeep.fleet import Kind, json_schema, load, loads
from vmkeep.fleet.reference import reference
from vmkeep.fleet.template import template
from vmkeep.operations.support import unsupported

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_example_fleet_is_valid(path):
    assert load(path).fleet.vms


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_example_fleet_tells_editors_its_schema(path):
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=fleet.schema.json\n")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_example_fleet_declares_nothing_that_cannot_be_done(path):
    assert unsupported(load(path)) == []


def test_there_is_an_example_for_every_driver():
    drivers = {config.driver for path in CONFIGS for config in load(path).fleet.hypervisors.values()}

    assert drivers == {"images", "libvirt", "vsphere"}


def test_the_company_is_a_larger_fleet():
    fleet = load(ROOT / "configs" / "company.yaml").fleet

    assert len(fleet.vms) >= 12
    assert len(fleet.consistency_groups) >= 3


def test_the_exported_schema_is_that_of_the_models():
    exported = json.loads((ROOT / "configs" / "fleet.schema.json").read_text(encoding="utf-8"))

    assert exported == json_schema(), "write it anew: vmkeep schema > configs/fleet.schema.json"


def test_the_schema_lets_a_vm_leave_out_what_defaults_give():
    assert "required" not in json_schema()["$defs"]["VM"]


def test_the_reference_is_that_of_the_models():
    page = (ROOT / "docs" / "fleet-file.md").read_text(encoding="utf-8")

    assert page == reference(), "write it anew: python -m vmkeep.fleet.reference > docs/fleet-file.md"


def test_the_reference_says_something_about_every_key():
    empty = [line for line in reference().splitlines() if line.startswith("| `") and line.endswith("|  |")]

    assert not empty


def test_the_template_is_valid():
    fleet = loads(template("mine", store="s3://bucket/my shop", key_file="~/mine.key")).fleet

    assert (fleet.fleet, fleet.repository.store) == ("mine", "s3://bucket/my shop")


def test_the_lines_that_the_template_offers_are_valid_too():
    text = template().replace("# s3:", "# s3x:")
    offered = "\n".join(
        line.replace("# ", "", 1)
        if line.lstrip().startswith("# ") and ":" in line and "s3x" not in line
        else line
        for line in text.splitlines()[2:]
    )

    fleet = loads(offered).fleet

    assert fleet.schedules.backup is not None
    assert set(fleet.hypervisors) == {"shelf", "rack1"}
    assert Kind.DATABASES.value in fleet.vms["db1"].components.model_fields_set
