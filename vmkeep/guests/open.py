"""From a VM as declared to the way into its inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkeep.errors import UnsupportedError
from vmkeep.guests.agent import AgentGuest
from vmkeep.guests.ssh import SshGuest, Target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmkeep.fleet.model import VM
    from vmkeep.guests.base import AgentChannel, Guest


def open_guest(name: str, vm: VM, channel: Callable[[], AgentChannel], *, base: Path) -> Guest:
    """Return the way into a running VM: the agent where it is declared, else SSH.

    The agent comes first because it needs no network: it also answers in the isolated one of a drill.

    Args:
        name: The VM as the hypervisor knows it.
        channel: Called for the way to its agent, if that is declared.
        base: The folder of the fleet file, from which relative paths start.

    Raises:
        UnsupportedError: neither is declared.
    """
    if vm.guest is not None and vm.guest.agent:
        return AgentGuest(channel(), name=f"VM {name}")
    if vm.guest is not None and vm.guest.ssh is not None:
        ssh = vm.guest.ssh
        key = base / ssh.key_file.expanduser() if ssh.key_file else None
        port = ssh.port if "port" in ssh.model_fields_set else None
        return SshGuest(Target(ssh.host, ssh.user, port, key), name=f"VM {name}")
    raise UnsupportedError(
        f"VM {name}: there is no way into it: declare guest: {{agent: true}} or guest: {{ssh: {{host: ...}}}}"
    )
