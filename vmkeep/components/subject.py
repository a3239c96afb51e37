"""A VM that was started, and the addresses at which it may be asked.

One that was restored under another name is only asked where its own inside says that it is: what the fleet
file declares leads to the original, whose health proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmkeep.errors import UnsupportedError
from vmkeep.guests.open import open_guest

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from vmkeep.fleet.model import VM
    from vmkeep.guests.base import Guest
    from vmkeep.hypervisors.base import Hypervisor


@dataclass(slots=True)
class Subject:
    """Close it, or use it in a `with`."""

    name: str
    """As the hypervisor knows it."""
    vm: VM
    hypervisor: Hypervisor
    base: Path
    """The folder of the fleet file."""
    original: bool = True
    """False for one that was restored under another name."""
    isolated: bool = False
    """Whether its network is one that this host must not ask: its addresses are also those of others."""
    _guest: Guest | None = field(default=None)

    def guest(self) -> Guest:
        """Return the way into it, opened when first used.

        Raises:
            UnsupportedError: none is declared, or only one that leads to another VM.
        """
        if self._guest is None:
            if not self.original and not self.has_agent:
                raise UnsupportedError(
                    f"VM {self.name}: only its guest agent leads into it, because it was restored under "
                    "another name: declare guest: {agent: true}"
                )
            channel = self.hypervisor.agent
            self._guest = open_guest(self.name, self.vm, lambda: channel(self.name), base=self.base)
        return self._guest

    @property
    def has_agent(self) -> bool:
        """Whether a guest agent is declared."""
        return self.vm.guest is not None and self.vm.guest.agent

    def addresses(self) -> tuple[str, ...]:
        """Return where it may be asked, in the order to try.

        Raises:
            UnsupportedError: nothing says where it is.
            TemporaryError: its guest agent does not answer yet, or knows of no address yet.
        """
        if self.has_agent:
            return self.guest().addresses()
        ssh = self.vm.guest.ssh if self.vm.guest is not None else None
        if ssh is None or not self.original:
            raise UnsupportedError(
                f"VM {self.name}: nothing says what its address is: declare guest: {{agent: true}}"
                + (" or guest: {ssh: {host: ...}}" if self.original else "")
            )
        return (ssh.host,)

    def close(self) -> None:
        """Let go of the way into it."""
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
