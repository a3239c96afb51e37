"""Servers that many tests share."""

import pytest

from vmkeep.testing.seaweed import seaweed as run_seaweed


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory):
    """A SeaweedFS server, started by the first test that needs it."""
    with run_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server
