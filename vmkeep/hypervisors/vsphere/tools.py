"""What VMware tools tell of a guest, in the words of a guest agent: whether it lives, and its addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmkeep.errors import GuestError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyVmomi import vim

    from vmkeep.hypervisors.vsphere.connection import Connection

_RUNNING = "guest.toolsRunningStatus"
_CARDS = "guest.net"


class VmwareTools:
    """An `AgentChannel` of one VM. It runs no commands in the guest, for that needs a login there."""

    def __init__(self, connection: Connection, there: vim.VirtualMachine, name: str) -> None:
        self._connection, self._there, self._name = connection, there, name

    def call(self, execute: str, arguments: Mapping[str, object], *, timeout_s: float) -> object:  # noqa: ARG002
        """Answer what vSphere knows of the guest.

        Raises:
            TemporaryError: VMware tools do not run in it.
            GuestError: it is something else that is asked.
        """
        found = self._connection.props([self._there], [_RUNNING, _CARDS]).get(self._there, {})
        if found.get(_RUNNING) != "guestToolsRunning":
            raise TemporaryError(f"VM {self._name}: VMware tools do not run in its guest, or not yet")
        match execute:
            case "guest-ping":
                return {}
            case "guest-network-get-interfaces":
                return [_interface(one) for one in found.get(_CARDS, ())]
            case _:
                raise GuestError(
                    f"VM {self._name}: {execute} is not done through VMware tools: declare guest.ssh for it"
                )

    def close(self) -> None:
        """Do nothing: the connection is shared."""


def _interface(card: Any) -> dict[str, object]:
    addresses = [
        {"ip-address": one, "ip-address-type": "ipv6" if ":" in one else "ipv4", "prefix": 0}
        for one in card.ipAddress or ()
    ]
    return {
        "name": card.network or "",
        "hardware-address": card.macAddress or "",
        "ip-addresses": addresses,
    }
