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
        case LibvirtHypervisor() | VsphereHypervisor():
            raise UnsupportedError(
                f"hypervisor {name}: driver {config.driver} is not supported by this version of vmkeep; "
                "driver images is"
            )
        case _:
            assert_never(config)
