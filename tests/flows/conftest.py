"""One Prefect server with an empty database for all flow tests."""

import os
from types import SimpleNamespace

import pytest

from vmkeep.testing.site import Site


@pytest.fixture(scope="session", autouse=True)
def prefect_server(tmp_path_factory):
    """Prefect's own test harness; started once, for it takes seconds."""
    home = tmp_path_factory.mktemp("prefect")
    os.environ["PREFECT_HOME"] = str(home)
    from prefect.testing import utilities  # noqa: PLC0415

    import flows  # noqa: F401, PLC0415  (sets Prefect's settings, before Prefect is imported)

    with pytest.MonkeyPatch.context() as patched:
        # It would remove the folder of its database when Python ends: later than we look for what is left.
        patched.setattr(utilities, "mkdtemp", lambda: str(home / "database"))
        patched.setattr(utilities, "atexit", SimpleNamespace(register=lambda *_: None))
        (home / "database").mkdir()
        with utilities.prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A small fleet with real images and a real repository; its state is the test's own."""
    monkeypatch.setenv("VMKEEP_STATE", str(tmp_path / "state"))
    folder = tmp_path / "site"
    folder.mkdir()
    return Site(folder)
