"""The way to a guest agent through libvirt, which synchronizes the channel by itself."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import libvirt
import libvirt_qemu

from vmkeep.errors import GuestError, TemporaryError
from vmkeep.hypervisors.libvirt.connection import meaning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmkeep.hypervisors.libvirt.connection import Connection


class LibvirtAgent:
    """An `AgentChannel` of one domain."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self._name = connection, name

    def call(self, execute: str, arguments: Mapping[str, object], *, timeout_s: float) -> object:
        """Send one command, and return what stands under `return` in its answer."""
        command = json.dumps({"execute": execute, "arguments": dict(arguments)})
        domain = self._connection.domain(self._name)
        what = f"VM {self._name}: guest agent: {execute}"
        try:
            answer = libvirt_qemu.qemuAgentCommand(domain, command, max(1, math.ceil(timeout_s)), 0)
        except libvirt.libvirtError as error:
            # The domain was stopped, or has no agent configured: asking again later is all there is.
            told = meaning(error, what)
            raise told if isinstance(told, GuestError) else TemporaryError(str(told)) from error
        try:
            return json.loads(answer)["return"]
        except (ValueError, KeyError, TypeError) as error:
            raise GuestError(f"{what}: answered {answer[:200]!r}") from error

    def close(self) -> None:
        """Do nothing: the connection is shared."""
