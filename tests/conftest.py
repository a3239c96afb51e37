"""Servers that many tests share."""

import contextlib
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from vmkeep.testing import vsphere as vsphere_server
from vmkeep.testing.clean_machine import clean_machine
from vmkeep.testing.libvirtd import libvirtd as run_libvirtd
from vmkeep.testing.seaweed import seaweed as run_seaweed

# How long an example takes says nothing on a machine that does other things, too.
settings.register_profile("vmkeep", deadline=None)
settings.load_profile("vmkeep")


class ByFile(LoadScopeScheduling):
    """Gives the tests of a file to one of several processes, and to one all that has to do with libvirt.

    Two daemons at once would choose the same bridges and subnets for their networks.
    """

    def _split_scope(self, nodeid):
        path = nodeid.partition("::")[0]
        return "libvirt" if "libvirt" in (self.config.rootpath / path).read_text() else path


def pytest_xdist_make_scheduler(config, log):
    """Begin with the files that come first: unit tests, which are quick, are left for the end."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """A folder for them that is only this session's: in the end it is empty, and nothing runs."""
    tmp_path_factory.getbasetemp()  # pytest's folder is elsewhere: it keeps what failed tests leave
    with clean_machine():
        yield
        end_servers_of_prefect()


def end_servers_of_prefect():
    """End those that it started for flows that found none; it does so when Python ends, which is too late."""
    if "prefect.server.api.server" in sys.modules:
        from prefect.server.api.server import SubprocessASGIServer  # noqa: PLC0415

        for server in [*SubprocessASGIServer._instances.values()]:
            server.stop()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory):
    """A SeaweedFS server, started by the first test that needs it."""
    with run_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@contextlib.contextmanager
def host():
    """Run a libvirt daemon of the tests' own."""
    # Sockets lie in it, whose paths may be 107 bytes long: a test's own folder is too deep.
    with (
        tempfile.TemporaryDirectory(prefix="vmkeep-libvirtd.") as folder,
        run_libvirtd(Path(folder)) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def libvirt_daemon():
    """A host, started by the first test that needs it."""
    with host() as server:
        yield server


@pytest.fixture
def libvirtd(libvirt_daemon):
    """The libvirt daemon, without VMs, with a storage pool `default`."""
    libvirt_daemon.clear()
    libvirt_daemon.define_pool("default")
    yield libvirt_daemon
    libvirt_daemon.clear()


@pytest.fixture(scope="session")
def second_libvirt_daemon():
    """A second host."""
    with host() as server:
        yield server


@pytest.fixture
def second_libvirtd(second_libvirt_daemon):
    """Another host, without VMs and pools."""
    second_libvirt_daemon.clear()
    yield second_libvirt_daemon
    second_libvirt_daemon.clear()


@pytest.fixture
def vsphere(tmp_path):
    """A vSphere server of the test's own, without VMs."""
    folder = tmp_path / "vsphere"
    folder.mkdir()
    with vsphere_server.simulator(folder) as server:
        yield server
