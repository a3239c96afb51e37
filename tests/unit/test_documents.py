"""What the documents say must be there."""

import re
from pathlib import Path

import pytest

from vmkeep import fleet as fleets
from vmkeep.reports.fleet_picture import fleet_svg

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    links = [target for target, _ in LINK.findall(page.read_text()) if target and "://" not in target]

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_promise_names_tests_that_exist():
    page = ROOT / "docs" / "guarantees.md"
    text = page.read_text()
    tests = [(target, name) for target, name in LINK.findall(text) if target.endswith(".py")]

    promises = re.findall(r"^(\d+)\. \*\*", text, re.MULTILINE)
    gone = [
        f"{target}#{name}"
        for target, name in tests
        if name and f"def test_{name}" not in (page.parent / target).read_text()
    ]

    assert [int(number) for number in promises] == list(range(1, len(promises) + 1))
    assert len(tests) >= len(promises)
    assert gone == []


def test_no_document_names_a_path_of_a_machine():
    words = ("/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/")
    named = [(page.name, word) for page in PAGES for word in words if word in page.read_text()]

    assert named == []


@pytest.mark.parametrize("fleet", ["company", "shop"])
def test_the_pictures_are_what_vmkeep_draws(fleet):
    drawn = fleet_svg(fleets.load(ROOT / "configs" / f"{fleet}.yaml").fleet)

    assert (ROOT / "docs" / "images" / f"{fleet}.svg").read_text() == drawn


BLOCKS = [
    (str(page.relative_to(ROOT)), number, block)
    for page in PAGES
    for number, block in enumerate(re.findall(r"```yaml\n(version: 1\n.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize(("page", "number", "block"), BLOCKS, ids=[f"{page}-{n}" for page, n, _ in BLOCKS])
def test_every_fleet_file_in_the_documents_is_valid(page, number, block):
    assert fleets.loads(block, path=f"{page} block {number}").fleet.vms
