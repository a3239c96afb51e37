"""What the faults of vSphere mean for the operator."""

from __future__ import annotations

import contextlib
import http.client
import ssl
from typing import TYPE_CHECKING, Final

from pyVmomi import vim, vmodl

from vmkeep.errors import (
    AccessError,
    InputError,
    NotFoundError,
    SourceChangedError,
    SourceError,
    TemporaryError,
    UnsupportedError,
    VmkeepError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_GONE: Final = (vmodl.fault.ManagedObjectNotFound, vim.fault.NotFound, vim.fault.FileNotFound)
_BUSY: Final = (
    vim.fault.TaskInProgress,
    vim.fault.ConcurrentAccess,
    vim.fault.FileLocked,
    vim.fault.ResourceInUse,
    vim.fault.Timedout,
    vim.fault.HostConnectFault,
    vmodl.fault.HostCommunication,
    vmodl.fault.HostNotConnected,
    vmodl.fault.HostNotReachable,
    vmodl.fault.RequestCanceled,
)
_WRONG: Final = (
    vmodl.fault.InvalidArgument,
    vmodl.fault.InvalidRequest,
    vim.fault.InvalidDeviceSpec,
    vim.fault.InvalidName,
    vim.fault.DuplicateName,
    vim.fault.AlreadyExists,
    vim.fault.InvalidDatastore,
)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise what a failed call means for the operator; *what* was being dealt with.

    Raises:
        AccessError: the login, a privilege or the certificate is refused.
        NotFoundError: it is not there.
        TemporaryError: vSphere does not answer, or something else is at work on it.
        InputError: vSphere does not take what was asked for.
        SourceChangedError: it was started or stopped meanwhile.
        SourceError: anything else.
    """
    try:
        yield
    except (vmodl.MethodFault, OSError, http.client.HTTPException) as error:
        raise meaning(error, what) from error


def meaning(error: Exception, what: str) -> VmkeepError:  # noqa: PLR0911  (one line for each kind)
    """Return the error of vmkeep that says what a fault or a failed connection means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return AccessError(
            f"{what}: its certificate is not trusted ({error.verify_message}): name the authority's "
            "certificate as ca_file of the hypervisor, or call it as its certificate does"
        )
    if not isinstance(error, vmodl.MethodFault):
        return TemporaryError(f"{what}: no answer ({type(error).__name__}: {error})")
    text = f"{what}: {words(error)}"
    if isinstance(error, vim.fault.InvalidLogin | vim.fault.NotAuthenticated):
        return AccessError(f"{text}; check user and password of the hypervisor's credentials")
    if isinstance(error, vim.fault.NoPermission):
        return AccessError(f"{text}; give the account the privilege {error.privilegeId or ''}".rstrip())
    if isinstance(error, _GONE):
        return NotFoundError(text)
    if isinstance(error, vim.fault.InvalidPowerState):
        return SourceChangedError(f"{text}; it was started or stopped meanwhile, or runs")
    if isinstance(error, _BUSY):
        return TemporaryError(text)
    if isinstance(error, vmodl.fault.NotSupported):
        return UnsupportedError(text)
    if isinstance(error, _WRONG):
        return InputError(text)
    return SourceError(text)


def words(error: vmodl.MethodFault) -> str:
    """Return what a fault says, and its name, which can be searched for."""
    name = type(error).__name__.rpartition(".")[2]
    said = [str(getattr(error, "msg", None) or "")]
    said += [one.message or "" for one in error.faultMessage or ()]
    told = "; ".join(dict.fromkeys(text.strip() for text in said if text and text.strip()))
    return f"{told} ({name})" if told else name
