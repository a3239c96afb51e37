"""Every hypervisor driver keeps the contract."""

import os

import pytest

from vmkeep.hypervisors.images import ImagesHypervisor
from vmkeep.hypervisors.libvirt.driver import LibvirtHypervisor
from vmkeep.hypervisors.memory import MemoryHypervisor
from vmkeep.hypervisors.vsphere.connection import Connection, address_of
from vmkeep.hypervisors.vsphere.driver import VsphereHypervisor
from vmkeep.testing.guests import write_into
from vmkeep.testing.hypervisors import HypervisorContract


class TestMemoryHypervisor(HypervisorContract):
    @pytest.fixture(autouse=True)
    def hypervisor(self):
        self.one = MemoryHypervisor()

    def open(self):
        return self.one

    def write(self, hypervisor, name, data):
        hypervisor.disk(name, "root").write(0, data)


class TestImagesHypervisor(HypervisorContract):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        self.path = tmp_path

    def open(self):
        return ImagesHypervisor("shelf", self.path)

    def write(self, hypervisor, name, data):  # noqa: ARG002
        write_into(self.path / name / "root.raw", 0, data)


@pytest.mark.integration
class TestLibvirtHypervisor(HypervisorContract):
    @pytest.fixture(autouse=True)
    def daemon(self, libvirtd, request):
        if os.geteuid() != 0 and "drill" in request.node.name:
            pytest.skip("only the system's daemon makes networks")
        self.libvirtd = libvirtd
        for network in ("lan", "dmz"):
            libvirtd.define_network(network)

    def open(self):
        return LibvirtHypervisor("rack", self.libvirtd.uri, sockets=self.libvirtd.sockets)

    def write(self, hypervisor, name, data):
        write_into(hypervisor.images(name)[0].path, 0, data)


@pytest.mark.integration
class TestVsphereHypervisor(HypervisorContract):
    form = "vmdk"
    holds = True

    @pytest.fixture(autouse=True)
    def server(self, vsphere):
        self.vsphere = vsphere
        address = address_of(vsphere.host, ca_file=vsphere.ca)
        connection = Connection(address, lambda: (vsphere.user, vsphere.password))
        self.one = VsphereHypervisor("dc1", connection)
        yield
        self.one.discard_disks("db1", ["root"])  # what tests left uncommitted
        connection.close()

    def open(self):
        return self.one

    def write(self, hypervisor, name, data):  # noqa: ARG002
        self.vsphere.write(name, 0, 0, data)
