"""The file systems of a powered-off VM, opened when a component first needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from vmkeep.disks.device import Image


class GuestFiles:
    """Opens the file systems once for all components of a VM that are saved together."""

    def __init__(self, name: str, images: Sequence[Image], *, kernel_mounts: bool = False) -> None:
        """Remember what to open; nothing is opened yet.

        Args:
            name: The VM, for errors.
            images: Its disks, in order.
            kernel_mounts: Let the host's kernel mount what has no user-space driver (needs root).
        """
        self._name, self._images, self._kernel_mounts = name, tuple(images), kernel_mounts

    def close(self) -> None:
        """Unmount everything; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
