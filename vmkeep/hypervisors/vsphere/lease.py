"""Leases of the NFC service: how whole disks are taken out of vSphere, and put in.

lease ── initializing ── ready ── GET or POST of each disk ── Complete
                           └ Progress again and again, or vSphere ends it
"""

from __future__ import annotations

import contextlib
import threading
import time
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, Final

from pyVmomi import vim

from vmkeep.errors import SourceError, TemporaryError, VmkeepError
from vmkeep.hypervisors.vsphere.faults import meaning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from vmkeep.hypervisors.vsphere.connection import Connection

_READY_S: Final = 600.0
_LONGEST_S: Final = 60.0
_KINDS: Final = {
    "scsi": ("SCSI", "LsiLogic", "LsiLogicSAS", "BusLogic"),
    "sata": ("AHCI", "SATA"),
    "nvme": ("NVME",),
    "ide": ("IDE",),
}
"""How controllers are called, by the letters of a place."""


class Lease:
    """A lease that is ready, and kept alive; the block completes it, or aborts it when it fails."""

    def __init__(self, connection: Connection, what: str, make: Callable[[], vim.HttpNfcLease]) -> None:
        """Ask for a lease and wait until it is ready.

        Raises:
            VmkeepError: vSphere does not give it.
        """
        self._connection, self._what = connection, what
        self._lease = connection.call(what, make)
        self._ended = threading.Event()
        self._done = self._total = 0
        try:
            found = self._ready()
        except BaseException:
            self._abort()
            raise
        self.urls: Sequence[vim.HttpNfcLease.DeviceUrl] = [
            one for one in found.get("info.deviceUrl", ()) if one.disk or one.disk is None
        ]
        """Of the disks, in order."""
        self.entity: vim.ManagedEntity | None = found.get("info.entity")
        """What is exported, or was made."""
        pause = min(_LONGEST_S, float(found.get("info.leaseTimeout") or 300) / 3)
        self._thread = threading.Thread(target=self._keep, args=(pause,), name="lease", daemon=True)
        self._thread.start()

    def url_of(self, place: str, key: int | None = None) -> vim.HttpNfcLease.DeviceUrl:
        """Return where a disk goes in or out.

        Which it is is told by its controller's bus and unit, or by its own key; never by the order.
        See: vSphere Web Services API, HttpNfcLeaseDeviceUrl ("/vm-12/ParaVirtualSCSIController0:1").

        Args:
            place: Such as `scsi0:1`.
            key: Of the device, if it is known.

        Raises:
            SourceError: it is not certain which.
        """
        bus, _, unit = place.partition(":")
        number = bus.lstrip(ascii_lowercase)
        kinds = _KINDS[bus.removesuffix(number)]
        endings = [f"{kind}Controller{number}:{unit}" for kind in kinds]
        endings += [f"VirtualDisk:{key}"] if key is not None else []
        found = [
            one
            for one in self.urls
            if any(str(name or "").endswith(tuple(endings)) for name in (one.key, one.importKey))
        ]
        if len(found) != 1:
            offered = ", ".join(str(one.key) for one in self.urls) or "nothing"
            raise SourceError(
                f"{self._what}: vSphere does not say which disk is that at {place} (it offers {offered})"
            )
        return found[0]

    def expect(self, size: int) -> None:
        """Say how many bytes there are in all, so that vCenter can show how far it is."""
        self._total = size

    def count(self, size: int) -> None:
        """Say that so many bytes more were sent or received."""
        self._done += size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is not None:
            self._abort()
            return
        self._connection.call(self._what, self._lease.HttpNfcLeaseComplete)

    def _ready(self) -> dict[str, Any]:
        deadline = time.monotonic() + _READY_S
        paths = ["state", "error", "info.deviceUrl", "info.entity", "info.leaseTimeout"]
        while True:
            found = self._connection.props([self._lease], paths).get(self._lease, {})
            state = found.get("state")
            if state == vim.HttpNfcLease.State.ready:
                return found
            if state == vim.HttpNfcLease.State.error:
                error = found.get("error")
                raise meaning(error, self._what) if error else SourceError(f"{self._what}: no lease")
            if state == vim.HttpNfcLease.State.done or state is None:
                raise SourceError(f"{self._what}: its lease ended before it began")
            if time.monotonic() > deadline:
                raise TemporaryError(f"{self._what}: vSphere gives no lease within {_READY_S:.0f} s")
            time.sleep(0.1)

    def _keep(self, pause: float) -> None:
        while not self._ended.wait(pause):
            percent = min(99, 100 * self._done // self._total) if self._total else 1
            # What ends the lease ends the transfer, which says so.
            with contextlib.suppress(VmkeepError):
                self._connection.call(
                    self._what,
                    lambda percent=percent: self._lease.HttpNfcLeaseProgress(percent),  # type: ignore[misc]
                )

    def _abort(self) -> None:
        with contextlib.suppress(VmkeepError):  # it ends by itself
            self._connection.call(self._what, self._lease.HttpNfcLeaseAbort)
