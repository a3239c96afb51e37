"""From a hypervisor as declared to its driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from vmkeep.errors import UnsupportedError
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
        UnsupportedError: this version has no such driver.
    """
    match config:
        case ImagesConfig():
            path = (base / config.path.expanduser()).resolve()
            return ImagesHypervisor(name, path, kernel_mounts=config.kernel_mounts)
        case LibvirtHypervisor():
            return _libvirt(name, config, base)
        case VsphereHypervisor():
            raise UnsupportedError(
                f"hypervisor {name}: driver {config.driver} is not supported by this version of vmkeep; "
                "drivers images and libvirt are"
            )
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
