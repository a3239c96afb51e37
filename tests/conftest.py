"""Servers that many tests share."""

import pytest
from hypothesis import settings

from vmkeep.testing.seaweed import seaweed as run_seaweed

# How long an example takes says nothing on a machine that does other things, too.
settings.register_profile("vmkeep", deadline=None)
settings.load_profile("vmkeep")


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory):
    """A SeaweedFS server, started by the first test that needs it."""
    with run_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server
