"""From a hypervisor as declared to its driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from vmkeep.errors import UnsupportedError
from vmkeep.fleet.lookup import login_of
from vmkeep.fleet.model import ImagesHypervisor as ImagesConfig
from vmkeep.fleet.model import LibvirtHypervisor, VsphereHypervisor
from vmkeep.hypervisors.images import ImagesHypervisor

if TYPE_CHECKING:
    from pathlib import Path

    from vmkeep.fleet.model import HypervisorConfig
    from vmkeep.hypervisors.base import Hypervisor


def open_hypervisor(name: str, config: HypervisorConfig, base: Path) -> Hypervisor:
    """Return the driver of a declared hypervisor.

    Args:
        base: The folder of the fleet file, from which relative paths start.

    Raises:
        UnsupportedError: the driver needs a Python module that is not installed.
    """
    match config:
        case ImagesConfig():
            path = (base / config.path.expanduser()).resolve()
            return ImagesHypervisor(name, path, kernel_mounts=config.kernel_mounts)
        case LibvirtHypervisor():
            return _libvirt(name, config, base)
        case VsphereHypervisor():
            return _vsphere(name, config, base)
        case _:
            assert_never(config)


def _libvirt(name: str, config: LibvirtHypervisor, base: Path) -> Hypervisor:
    try:
        # The module of libvirt is an optional extra, and only this driver needs it.
        from vmkeep.hypervisors.libvirt.driver import LibvirtHypervisor as Driver  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"hypervisor {name}: driver libvirt needs the Python module {error.name}: apt-get install "
            "libvirt-dev pkg-config gcc python3-dev, then pip install 'vmkeep[libvirt]'"
        ) from error
    sockets = (base / config.sockets.expanduser()).resolve() if config.sockets else None
    return Driver(name, config.uri, sockets=sockets, kernel_mounts=config.kernel_mounts)


def _vsphere(name: str, config: VsphereHypervisor, base: Path) -> Hypervisor:
    try:
        # The module of VMware is an optional extra, and only this driver needs it.
        from vmkeep.hypervisors.vsphere.connection import address_of, shared  # noqa: PLC0415
        from vmkeep.hypervisors.vsphere.driver import VsphereHypervisor as Driver  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"hypervisor {name}: driver vsphere needs the Python module {error.name}: "
            "pip install 'vmkeep[vsphere]'"
        ) from error
    ca_file = (base / config.ca_file.expanduser()).resolve() if config.ca_file else None
    what = f"hypervisors.{name}.credentials: the secret must read USER:PASSWORD"

    def login() -> tuple[str, str]:
        return login_of(config.credentials, base, what=what)

    address = address_of(config.host, verify=config.verify_tls, ca_file=ca_file)
    connection = shared(address, f"{base} {config.credentials}", login)
    return Driver(name, connection, datacenter=config.datacenter)
