"""The connection to vCenter or an ESXi host.

Properties are read in bulk and as leaves (`runtime.powerState`, not `runtime`): one call for a thousand VMs,
and no object is decoded of which one field is new to this version of pyVmomi.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl

from vmkeep.errors import SourceError, TemporaryError, VmkeepError
from vmkeep.hypervisors.vsphere.faults import meaning, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pyVmomi.VmomiSupport import ManagedObject

_Result = TypeVar("_Result")
_Entity = TypeVar("_Entity", bound=vim.ManagedEntity)

_CALL_S: Final = 120.0
"""How long one call may take; long work is done by tasks, which are asked how far they are."""
_TASK_S: Final = 3600.0
_TRIES: Final = 3
_POLL_S: Final = (0.02, 1.0)
_PORT: Final = 443
_BASES: Final = (vim.Network, vim.ComputeResource)
"""Types that are asked about together with those derived from them."""
_COLLECTOR: Final = vmodl.query.PropertyCollector
_LOST: Final = (http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Address:
    """Where vCenter or an ESXi host answers, and how its certificate is checked."""

    host: str
    port: int = _PORT
    verify: bool = True
    ca_file: Path | None = None
    """Certificates to trust; by default those of this machine."""

    def __str__(self) -> str:
        return self.host if self.port == _PORT else f"{self.host}:{self.port}"

    @property
    def netloc(self) -> str:
        """Host and port, as URLs write them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def context(self) -> ssl.SSLContext:
        """Return how its certificate is checked.

        There is always one: pyVmomi by itself does not check a host that is called localhost.
        """
        context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def address_of(host: str, *, verify: bool = True, ca_file: Path | None = None) -> Address:
    """Return an address from ``name``, ``name:port`` or ``[v6]:port``."""
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit() and (name.endswith("]") or ":" not in name):
        return Address(name.strip("[]"), int(port), verify, ca_file)
    return Address(host.strip("[]"), _PORT, verify, ca_file)


class Connection:
    """A session, begun when it is first needed, and begun again when it ended. Safe for several threads."""

    def __init__(self, address: Address, login: Callable[[], tuple[str, str]]) -> None:
        """Remember where and how to log in.

        Args:
            login: Returns user and password; asked at every login, and never kept.
        """
        self.address = address
        self._login = login
        self._lock = threading.Lock()
        self._service: vim.ServiceInstance | None = None
        self._content: Any = None
        self._logins = 0

    def __str__(self) -> str:
        return str(self.address)

    @property
    def content(self) -> Any:  # pyVmomi's types call each of its parts optional
        """What the service consists of; logs in if that was not done.

        Raises:
            AccessError: it does not let us in, or its certificate is not trusted.
            TemporaryError: it does not answer.
        """
        with self._lock:
            if self._content is None:
                user, password = self._login()
                with translated(f"vSphere at {self}"):
                    self._service = SmartConnect(
                        host=self.address.host,
                        port=self.address.port,
                        user=user,
                        pwd=password,
                        sslContext=self.address.context(),
                        httpConnectionTimeout=_CALL_S,
                    )
                    self._content = self._service.RetrieveContent()
            return self._content

    @property
    def cookie(self) -> str:
        """What a request for a file shows in place of a login."""
        _ = self.content
        service = self._service
        return str(service._stub.cookie).split(";", 1)[0] if service is not None else ""  # noqa: SLF001

    def call(self, what: str, function: Callable[[], _Result]) -> _Result:
        """Call a method that changes something: once, or a second time if we were not logged in any more.

        Args:
            what: What is being dealt with, for errors.

        Raises:
            VmkeepError: what `translated` raises.
        """
        _ = self.content
        logins = self._logins
        with translated(what):
            try:
                return function()
            except vim.fault.NotAuthenticated:
                self._login_again(logins)
                return function()

    def read(self, what: str, function: Callable[[], _Result]) -> _Result:
        """Call a method that changes nothing; it is called again when the connection drops."""
        for attempt in range(1, _TRIES + 1):
            try:
                return self.call(what, function)
            except TemporaryError as error:
                if attempt == _TRIES or not isinstance(error.__cause__, _LOST):
                    raise
            time.sleep(0.1 * attempt)
        raise AssertionError("unreachable")

    def props(
        self, objects: Iterable[ManagedObject], paths: Sequence[str]
    ) -> dict[ManagedObject, dict[str, Any]]:
        """Return properties of objects of one type; what is not set, or is gone, is left out."""
        wanted = [*objects]
        if not wanted:
            return {}
        kind = next((one for one in _BASES if isinstance(wanted[0], one)), type(wanted[0]))
        spec = _COLLECTOR.FilterSpec(
            objectSet=[_COLLECTOR.ObjectSpec(obj=one) for one in wanted],
            propSet=[_COLLECTOR.PropertySpec(type=kind, pathSet=[*paths])],
            reportMissingObjectsInResults=True,
        )
        return self._retrieve(f"properties at {self}", spec)

    def prop(self, one: ManagedObject, path: str) -> Any:
        """Return one property, or None when it is not set."""
        return self.props([one], [path]).get(one, {}).get(path)

    def all_of(
        self, kind: type[_Entity], paths: Sequence[str], *, below: vim.ManagedEntity | None = None
    ) -> dict[_Entity, dict[str, Any]]:
        """Return all objects of a type below a folder or datacenter, with properties; one call for all."""
        what = f"the inventory of {self}"
        root = below or self.content.rootFolder
        view = self.read(
            what, lambda: self.content.viewManager.CreateContainerView(root, [kind], recursive=True)
        )
        try:
            through = _COLLECTOR.TraversalSpec(
                name="members", path="view", skip=False, type=vim.view.ContainerView
            )
            spec = _COLLECTOR.FilterSpec(
                objectSet=[_COLLECTOR.ObjectSpec(obj=view, skip=True, selectSet=[through])],
                propSet=[_COLLECTOR.PropertySpec(type=kind, pathSet=[*paths])],
                reportMissingObjectsInResults=True,
            )
            return cast("dict[_Entity, dict[str, Any]]", self._retrieve(what, spec))
        finally:
            with contextlib.suppress(VmkeepError):  # it ends with the session
                self.call(what, view.Destroy)

    def wait(self, task: vim.Task, what: str, *, timeout_s: float = _TASK_S, cancel: bool = False) -> Any:
        """Wait for a task; return its result.

        Args:
            cancel: Whether one that does not end in time is cancelled.

        Raises:
            TemporaryError: it did not end in time; it still runs.
            VmkeepError: it failed; what `translated` raises.
        """
        deadline = time.monotonic() + timeout_s
        pause, longest = _POLL_S
        while True:
            found = self.props([task], ["info.state", "info.error", "info.result"]).get(task, {})
            match found.get("info.state"):
                case vim.TaskInfo.State.success:
                    return found.get("info.result")
                case vim.TaskInfo.State.error:
                    error = found.get("info.error")
                    raise meaning(error, what) if error else SourceError(f"{what}: failed, without a reason")
                case None:
                    raise SourceError(f"{what}: its task is not known any more: look in vCenter how it ended")
            if time.monotonic() > deadline:
                if cancel:
                    with contextlib.suppress(VmkeepError):
                        self.call(what, task.CancelTask)
                    raise TemporaryError(f"{what} did not end within {timeout_s:.0f} s, and was cancelled")
                raise TemporaryError(
                    f"{what} did not end within {timeout_s:.0f} s, and goes on: look at its task in vCenter"
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def run(
        self,
        what: str,
        function: Callable[[], vim.Task],
        *,
        timeout_s: float = _TASK_S,
        cancel: bool = False,
    ) -> Any:
        """Start a task and wait for it as `wait` does; return its result."""
        return self.wait(self.call(what, function), what, timeout_s=timeout_s, cancel=cancel)

    def close(self) -> None:
        """Log out."""
        with self._lock:
            service, self._service, self._content = self._service, None, None
        if service is not None:
            with contextlib.suppress(Exception):  # the session ends by itself
                Disconnect(service)

    def _login_again(self, logins: int) -> None:
        """Log in again, unless another thread did so since there were that many logins."""
        with self._lock:
            if self._content is not None and self._logins == logins:
                user, password = self._login()
                self._content.sessionManager.Login(userName=user, password=password)
                self._logins += 1

    def _retrieve(
        self, what: str, spec: vmodl.query.PropertyCollector.FilterSpec
    ) -> dict[ManagedObject, dict[str, Any]]:
        collector = self.content.propertyCollector
        found: dict[ManagedObject, dict[str, Any]] = {}
        answer = self.read(what, lambda: collector.RetrievePropertiesEx([spec], _COLLECTOR.RetrieveOptions()))
        while answer is not None:
            for one in answer.objects:
                found[one.obj] = {prop.name: prop.val for prop in one.propSet}
            token = answer.token
            if not token:
                break
            answer = self.read(
                what,
                lambda token=token: collector.ContinueRetrievePropertiesEx(token),  # type: ignore[misc]
            )
        return found


_shared: Final[dict[tuple[int, Address, str], Connection]] = {}
_shared_lock: Final = threading.Lock()


def shared(address: Address, reference: str, login: Callable[[], tuple[str, str]]) -> Connection:
    """Return the connection that all of this process use.

    Args:
        reference: Where the login lies; another place may hold another user.
    """
    with _shared_lock:
        key = (os.getpid(), address, reference)
        if key not in _shared:
            _shared[key] = Connection(address, login)
            atexit.register(_shared[key].close)
        return _shared[key]
