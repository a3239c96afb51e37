"""Disks as they were at a snapshot, read over the network.

There are two ways:

    folder   ranges of the disk's file, asked for one by one      where the server lets us, and only of a disk
                                                                  whose one file lies still below the snapshot
    export   the whole disk as a streamOptimized vmdk, into a     everywhere
             file here, which then is read

What is tried first costs one request. VDDK, the third, may not be passed on with vmkeep (see ADR 0058).
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

from pyVmomi import vim

from vmkeep.disks import images, qemu_img, scratch
from vmkeep.disks.device import Extent
from vmkeep.errors import SourceChangedError, SourceError, VmkeepError
from vmkeep.hypervisors.vsphere import changes, transfer
from vmkeep.hypervisors.vsphere.captured import datastore_of, path_of
from vmkeep.hypervisors.vsphere.faults import translated
from vmkeep.hypervisors.vsphere.lease import Lease
from vmkeep.units import MiB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from vmkeep.disks.device import DiskSource
    from vmkeep.hypervisors.vsphere.connection import Connection
    from vmkeep.hypervisors.vsphere.machine import Disk
    from vmkeep.hypervisors.vsphere.places import Places

_PIECE: Final = 8 * MiB
"""The most that one request asks for."""
_TRIES: Final = 3
_PARTIAL: Final = 206
_FLAT: Final = vim.vm.device.VirtualDisk.FlatVer2BackingInfo


class FolderSource:
    """A disk whose file is read by ranges. Safe to use from several threads."""

    def __init__(
        self, connection: Connection, url: str, *, size: int, known: Sequence[Extent], what: str
    ) -> None:
        """Read the file at *url*.

        Args:
            known: What holds data.
        """
        self._connection, self._what = connection, what
        self._remote = transfer.Remote(connection.address, url)
        self._size, self._known = size, known
        self._idle: list[http.client.HTTPSConnection] = []
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""
        return self._size

    def extents(self) -> Iterator[Extent]:
        """Yield what vSphere says is allocated."""
        return iter(self._known)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*; all of it, or raise."""
        done = 0
        while done < len(buffer):
            piece = buffer[done : done + _PIECE]
            self._read(offset + done, piece)
            done += len(piece)

    def probe(self) -> bool:
        """Tell whether the server gives ranges of the file, and the file is as long as the disk."""
        try:
            return self._length() == self._size and len(self._ask(0, 512)) == 512
        except (VmkeepError, OSError, http.client.HTTPException):
            return False

    def close(self) -> None:
        """Let go of the connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for one in idle:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, offset: int, buffer: memoryview) -> None:
        for attempt in range(1, _TRIES + 1):
            try:
                with translated(self._what):
                    data = self._ask(offset, len(buffer))
            except VmkeepError:
                if attempt == _TRIES:
                    raise
                # Who is not logged in any more is, after a call of the other kind.
                self._connection.prop(self._connection.content.rootFolder, "name")
            else:
                buffer[:] = data
                return

    def _ask(self, offset: int, length: int) -> bytes:
        answer, line = self._request("GET", {"Range": f"bytes={offset}-{offset + length - 1}"})
        data = answer.read()
        if answer.status != _PARTIAL or len(data) != length:
            line.close()
            raise SourceError(
                f"{self._what}: the server answers {answer.status} {answer.reason} with {len(data)} bytes "
                f"to a request for {length} at {offset}"
            )
        self._keep(line)
        return data

    def _length(self) -> int:
        answer, line = self._request("HEAD", {})
        answer.read()
        length = answer.getheader("Content-Length") or "-1"
        self._keep(line)
        return int(length) if answer.status == 200 else -1

    def _request(
        self, method: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPSConnection]:
        with self._lock:
            line = self._idle.pop() if self._idle else None
        if line is None:
            line = self._remote.connect()
        try:
            line.request(method, self._remote.asked, headers={**headers, "Cookie": self._connection.cookie})
            return line.getresponse(), line
        except BaseException:
            line.close()
            raise

    def _keep(self, line: http.client.HTTPSConnection) -> None:
        with self._lock:
            self._idle.append(line)


class ExportSource:
    """A disk that was taken out of vSphere whole, into a file here that goes with it."""

    def __init__(self, disk: DiskSource, stack: contextlib.ExitStack) -> None:
        self._disk, self._stack = disk, stack

    @property
    def size(self) -> int:
        """The virtual size, in bytes."""
        return self._disk.size

    def extents(self) -> Iterator[Extent]:
        """Yield the ranges that may hold data."""
        return self._disk.extents()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset*; all of it, or raise."""
        self._disk.read_into(offset, buffer)

    def close(self) -> None:
        """Remove the file."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_disk(
    places: Places, vm: vim.VirtualMachine, snapshot: vim.vm.Snapshot, disk: Disk, *, what: str
) -> DiskSource:
    """Open a disk as it was at a snapshot, by the first way that works.

    Raises:
        SourceError: none does.
    """
    source = _by_folder(places, vm, snapshot, disk, what)
    if source is not None:
        return source
    return _by_export(places.connection, snapshot, disk, what)


def _by_folder(
    places: Places, vm: vim.VirtualMachine, snapshot: vim.vm.Snapshot, disk: Disk, what: str
) -> FolderSource | None:
    """Open a disk by ranges of its file; None where that is not possible, or not seen to be right."""
    backing = disk.device.backing
    # A delta is in a format of its own, and what is encrypted comes out as it lies there.
    if not isinstance(backing, _FLAT) or backing.parent is not None or getattr(backing, "keyId", None):
        return None
    connection = places.connection
    url = _folder_url(places, disk.file)
    source = FolderSource(connection, url, size=disk.size, known=(), what=what)
    if not source.probe():
        source.close()
        return None
    known = [Extent(0, disk.size)]
    if disk.change_id:
        with contextlib.suppress(SourceError):  # all of it is read
            known = changes.areas(connection, vm, snapshot, disk, changes.ALLOCATED)
    source.close()
    return FolderSource(connection, url, size=disk.size, known=known, what=what)


def _folder_url(places: Places, file: str) -> str:
    address = places.connection.address
    path = path_of(file).removesuffix(".vmdk") + "-flat.vmdk"
    query = urlencode({"dcPath": places.datacenter_path(), "dsName": datastore_of(file)}, quote_via=quote)
    return f"https://{address.netloc}/folder/{quote(path)}?{query}"


def _by_export(connection: Connection, snapshot: vim.vm.Snapshot, disk: Disk, what: str) -> ExportSource:
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(scratch.scratch_folder()) / "disk.vmdk"
        with Lease(connection, f"{what}: export", snapshot.ExportSnapshot) as lease:
            url = lease.url_of(disk.place, disk.key)
            lease.expect(disk.size)
            transfer.leased(connection, url.url, url.sslThumbprint).download(
                path, what=what, progress=lease.count
            )
        size = qemu_img.info(path, "vmdk", what=what).size
        if size != disk.size:
            raise SourceChangedError(
                f"{what}: {size} bytes came out of vSphere, not {disk.size}: back it up again"
            )
        source = stack.enter_context(images.reader(path, "vmdk", what=what))
        return ExportSource(source, stack.pop_all())
