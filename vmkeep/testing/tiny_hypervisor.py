"""The driver `images`, whose VMs can be started: each runs as a tiny guest under plain QEMU."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmkeep.guests.agent_socket import SocketChannel
from vmkeep.hypervisors.images import ImagesHypervisor
from vmkeep.testing import tiny_guest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmkeep.fleet.model import VM
    from vmkeep.guests.base import AgentChannel


class TinyHypervisor(ImagesHypervisor):
    """Close it: that powers all VMs off."""

    can_start = True  # type: ignore[misc]  # (final for all but this)

    def __init__(self, name: str, path: Path, boot: tiny_guest.BootFiles) -> None:
        super().__init__(name, path)
        self._boot = boot
        self._running: dict[str, tuple[contextlib.ExitStack, tiny_guest.RunningGuest]] = {}

    def unsupported(self, name: str, vm: VM) -> Sequence[str]:  # noqa: ARG002  (the Protocol's)
        """Return nothing."""
        return []

    def is_running(self, name: str) -> bool:
        """Tell whether it was started."""
        return name in self._running

    def start(self, name: str) -> None:
        """Boot a tiny guest with the VM's disks."""
        if name in self._running:
            return
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            disks = [(image.path, image.format) for image in self.images(name)]
            machine = stack.enter_context(tiny_guest.running(self._boot, folder, disks=disks))
            self._running[name] = stack.pop_all(), machine

    def stop(self, name: str) -> None:
        """Power the VM off."""
        if name in self._running:
            self._running.pop(name)[0].close()

    def agent(self, name: str) -> AgentChannel:
        """Return the way to the guest agent."""
        return SocketChannel(self._running[name][1].agent_socket, name=f"VM {name}")

    def close(self) -> None:
        """Power all VMs off."""
        for name in [*self._running]:
            self.stop(name)
