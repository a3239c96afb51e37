"""What the tests of whole runs share."""

import pytest

from vmkeep.testing.site import Site


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A small fleet with real images and a real repository; its state is the test's own."""
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("vmkeep.operations.direct.DELAYS_S", (0.01, 0.01, 0.01))
    folder = tmp_path / "site"
    folder.mkdir()
    return Site(folder)
